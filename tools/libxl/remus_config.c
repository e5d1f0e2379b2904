/*
 * remus_config.c: a guest's configuration as another domain can be built from it.
 */
#include "tools/libxl/remus_config.h"

int remus_config_read(libxl_ctx *ctx, uint32_t domid, libxl_domain_config *config)
{
    libxl_dominfo info;
    int rc = libxl_retrieve_domain_configuration(ctx, domid, config, NULL);

    if (rc)
        return rc;
    libxl_dominfo_init(&info);
    rc = libxl_domain_info(ctx, &info, domid);
    if (!rc && config->b_info.target_memkb < info.current_memkb)
        config->b_info.target_memkb = info.current_memkb;
    libxl_dominfo_dispose(&info);
    return rc;
}
