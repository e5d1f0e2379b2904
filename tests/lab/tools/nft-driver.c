/*
 * nft-driver: the coordinator's packet filter functions by hand.
 *
 *   nft-driver protect VIF OUTQUEUE INQUEUE | unprotect VIF | fence VIF | list
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/remus/nftrules.h"

int main(int argc, char **argv)
{
    struct remus_nft_vif vifs[16];
    char error[512] = "";
    size_t count = 0, i;
    int rc;

    if (argc == 5 && strcmp(argv[1], "protect") == 0) {
        rc = remus_nft_protect(argv[2], (uint16_t)atoi(argv[3]), (uint16_t)atoi(argv[4]), NULL, 0,
                               error, sizeof(error));
    } else if (argc == 3 && strcmp(argv[1], "unprotect") == 0) {
        rc = remus_nft_unprotect(argv[2], error, sizeof(error));
    } else if (argc == 3 && strcmp(argv[1], "fence") == 0) {
        rc = remus_nft_fence(argv[2], error, sizeof(error));
    } else if (argc == 2 && strcmp(argv[1], "list") == 0) {
        rc = remus_nft_list(vifs, 16, &count, error, sizeof(error));
        for (i = 0; !rc && i < count && i < 16; i++) {
            printf("%s %d %u %u %d\n", vifs[i].name, vifs[i].steered, vifs[i].output_queue,
                   vifs[i].input_queue, vifs[i].fenced);
        }
    } else {
        fputs("usage: nft-driver protect VIF OUT IN | unprotect VIF | fence VIF | list\n", stderr);
        return 2;
    }
    if (rc) {
        fprintf(stderr, "nft-driver: %s\n", error);
    }
    return rc ? 1 : 0;
}
