/*
 * remus_config.h: a guest's configuration as another domain can be built from it.
 */
#ifndef REMUS_CONFIG_H
#define REMUS_CONFIG_H

#include <libxl.h>

/*
 * libxenlight's configuration of a running domain, with a memory target that no page of it exceeds:
 * a guest that is ballooning down, or that was asked to and cannot, has more pages than its target,
 * and a domain is built with room for the target only. config: initialised by the caller, who
 * disposes of it. 0 or a libxl error.
 */
int remus_config_read(libxl_ctx *ctx, uint32_t domid, libxl_domain_config *config);

#endif
