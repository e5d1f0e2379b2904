/*
 * xc_sr_stream.h: the two public migration streams, as far as an HVM or PVH guest needs them.
 *
 * The outer one (libxl, version 2) is a header and records; the inner one (libxc, version 3)
 * stands between the outer LIBXC_CONTEXT record and the next outer record.  Sources:
 * docs/specs/libxl-migration-stream.pandoc and docs/specs/libxc-migration-stream.pandoc of Xen.
 * Headers are big endian where marked; everything else is little endian, as the guests are.
 *
 *   libxl header
 *   LIBXC_CONTEXT
 *     image header, domain header
 *     X86_CPUID_POLICY, X86_MSR_POLICY, STATIC_DATA_END
 *     PAGE_DATA ...
 *     X86_TSC_INFO, HVM_CONTEXT, HVM_PARAMS
 *     END
 *   END                        (HVM guests have emulator records before it)
 */
#ifndef XC_SR_STREAM_H
#define XC_SR_STREAM_H

#include <stdint.h>

/* ---- Outer stream ---------------------------------------------------------------------------- */

#define XC_SR_OUTER_IDENT   0x4c6962786c466d74ull /* "LibxlFmt" */
#define XC_SR_OUTER_VERSION 2u

struct xc_sr_outer_header {
    uint64_t ident;   /* big endian */
    uint32_t version; /* big endian */
    uint32_t options; /* big endian; 0: little-endian records, not converted */
};

#define XC_SR_OUTER_END           0u
#define XC_SR_OUTER_LIBXC_CONTEXT 1u /* no body; the inner stream follows */

/* ---- Inner stream: headers ------------------------------------------------------------------- */

#define XC_SR_IMAGE_MARKER     0xffffffffffffffffull
#define XC_SR_IMAGE_ID         0x58454e46u /* "XENF" */
#define XC_SR_IMAGE_VERSION    3u
#define XC_SR_IMAGE_BIG_ENDIAN 0x1u

struct xc_sr_image_header {
    uint64_t marker;
    uint32_t id;      /* big endian */
    uint32_t version; /* big endian */
    uint16_t options; /* big endian */
    uint16_t reserved1;
    uint32_t reserved2;
};

#define XC_SR_DOMAIN_X86_PV  1u
#define XC_SR_DOMAIN_X86_HVM 2u /* PVH as well */

struct xc_sr_domain_header {
    uint32_t type; /* XC_SR_DOMAIN_* */
    uint16_t page_shift;
    uint16_t reserved;
    uint32_t xen_major;
    uint32_t xen_minor;
};

/* ---- Records of either stream ---------------------------------------------------------------- */

struct xc_sr_record_header { /* then the body, padded with zeroes to XC_SR_RECORD_ALIGN */
    uint32_t type;
    uint32_t length; /* of the body, without padding */
};
#define XC_SR_RECORD_ALIGN    8u
#define XC_SR_RECORD_OPTIONAL 0x80000000u /* a reader that does not know it skips it */

enum xc_sr_record_type {
    XC_SR_REC_END = 0x00,
    XC_SR_REC_PAGE_DATA = 0x01,
    XC_SR_REC_X86_PV_INFO = 0x02,
    XC_SR_REC_X86_PV_P2M_FRAMES = 0x03,
    XC_SR_REC_X86_PV_VCPU_BASIC = 0x04,
    XC_SR_REC_X86_PV_VCPU_EXTENDED = 0x05,
    XC_SR_REC_X86_PV_VCPU_XSAVE = 0x06,
    XC_SR_REC_SHARED_INFO = 0x07,
    XC_SR_REC_X86_TSC_INFO = 0x08,
    XC_SR_REC_HVM_CONTEXT = 0x09,
    XC_SR_REC_HVM_PARAMS = 0x0a,
    XC_SR_REC_TOOLSTACK = 0x0b,
    XC_SR_REC_X86_PV_VCPU_MSRS = 0x0c,
    XC_SR_REC_VERIFY = 0x0d,
    XC_SR_REC_CHECKPOINT = 0x0e,
    XC_SR_REC_CHECKPOINT_DIRTY = 0x0f,
    XC_SR_REC_STATIC_DATA_END = 0x10,
    XC_SR_REC_X86_CPUID_POLICY = 0x11, /* xen_cpuid_leaf_t[] */
    XC_SR_REC_X86_MSR_POLICY = 0x12,   /* xen_msr_entry_t[] */
};

struct xc_sr_page_data { /* then uint64_t pfn[count], then a page for each with data */
    uint32_t count;
    uint32_t reserved;
};
#define XC_SR_PFN_MASK       0x000fffffffffffffull
#define XC_SR_PFN_RESERVED   0x0ff0000000000000ull
#define XC_SR_PFN_TYPE_SHIFT 60
#define XC_SR_PFN_NOTAB      0x0u /* an ordinary page, its contents follow */
#define XC_SR_PFN_BROKEN     0xdu
#define XC_SR_PFN_XALLOC     0xeu /* allocate, no contents */
#define XC_SR_PFN_XTAB       0xfu /* no page there (any more) */

struct xc_sr_tsc_info {
    uint32_t mode;
    uint32_t khz;
    uint64_t nsec;
    uint32_t incarnation;
    uint32_t reserved;
};

struct xc_sr_hvm_params { /* then struct xc_sr_hvm_param[count] */
    uint32_t count;
    uint32_t reserved;
};
struct xc_sr_hvm_param {
    uint64_t index;
    uint64_t value;
};

/* ---- Limits ---------------------------------------------------------------------------------- */

#define XC_SR_RECORD_BYTES_MAX      (128u << 20) /* body of any record, the specification's bound */
#define XC_SR_BATCH_PAGES           1024u        /* pages of one PAGE_DATA record that we write */
#define XC_SR_PAGE_DATA_COUNT_MAX   32768u       /* and that we accept */
#define XC_SR_POLICY_BYTES_MAX      (64u << 10)  /* CPUID or MSR policy; Xen 4.17 uses 5 KiB */
#define XC_SR_HVM_CONTEXT_BYTES_MAX (16u << 20)  /* about 10 KiB for each vCPU */
#define XC_SR_HVM_PARAMS_MAX        64u          /* entries of HVM_PARAMS; the stock saver has 16 */

/* ---- The file of `xl save`: this header, the configuration, then the outer stream ------------ */

#define XC_SR_XL_MAGIC         "Xen saved domain, xl format\n \0 \r"
#define XC_SR_XL_BYTEORDER     0x01020304u
#define XC_SR_XL_FLAG_JSON     0x1u /* the configuration is JSON */
#define XC_SR_XL_FLAG_STREAMV2 0x2u

struct xc_sr_xl_header { /* then optional_bytes: uint32_t length, then the configuration */
    char magic[32];
    uint32_t byteorder;
    uint32_t mandatory_flags;
    uint32_t optional_flags;
    uint32_t optional_bytes;
};

#define XC_SR_STREAM_SIZE(type, size) _Static_assert(sizeof(type) == (size), "size of " #type)
XC_SR_STREAM_SIZE(struct xc_sr_outer_header, 16);
XC_SR_STREAM_SIZE(struct xc_sr_image_header, 24);
XC_SR_STREAM_SIZE(struct xc_sr_domain_header, 16);
XC_SR_STREAM_SIZE(struct xc_sr_record_header, 8);
XC_SR_STREAM_SIZE(struct xc_sr_page_data, 8);
XC_SR_STREAM_SIZE(struct xc_sr_tsc_info, 24);
XC_SR_STREAM_SIZE(struct xc_sr_hvm_params, 8);
XC_SR_STREAM_SIZE(struct xc_sr_hvm_param, 16);
XC_SR_STREAM_SIZE(struct xc_sr_xl_header, 48);

#endif /* XC_SR_STREAM_H */
