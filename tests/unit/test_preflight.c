/* LINK: tools/libxl/remus_preflight.c tools/libxl/remus_arbiter.c tools/libxl/remus_program.c tools/xl/options.c tools/libxl/remus_transport.c tools/libxl/remus_tls.c tools/libxl/remus_ktls.c tools/libxl/remus_message.c tools/remus/bypass.c tools/remus/packet.c tools/libxl/remus_core.c */
/* Every refusal, one by one: a guest and two hosts that are fit, with one thing wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/libxl/remus_arbiter.h"
#include "tools/libxl/remus_preflight.h"
#include "tools/xl/options.h"

static const struct remus_guest_facts fit_guest = {
    .domid = 7,
    .name = "web1",
    .exists = true,
    .type = REMUS_GUEST_PVH,
    .suspend_feature = true,
    .abi_known = true,
    .memory_kb = 131072,
    .need_kb = 140000,
    .pages = 32768,
    .vcpus = 2,
    .vifs = 1,
    .vif = {{
        .bridge = "br0", .ifname = "vif7.0", .kernel_backend = true, .connected = true,
        .queues = 1,
    }},
};

static const struct remus_host_facts fit_host = {
    .name = "alpha",
    .boot_id = "11111111-1111-1111-1111-111111111111",
    .xen = "4.17.5",
    .xen_free_kb = 1000000,
    .dom0_free_kb = 1000000,
    .libexec = "/usr/local/lib/remus",
    .nft_queue = true,
};

static const struct remus_meets_facts fit_meets = {.bridge_there = {true}};

struct fixture {
    struct remus_guest_facts guest;
    struct remus_host_facts host, other;
    struct remus_meets_facts meets;
    struct remus_wishes wishes;
    struct remus_refusals refusals;
};
static struct fixture f;

static int fit(void **state)
{
    (void)state;
    memset(&f, 0, sizeof(f));
    f.guest = fit_guest;
    f.host = fit_host;
    f.other = fit_host;
    strcpy(f.other.name, "beta");
    f.other.boot_id[0] = '2';
    f.meets = fit_meets;
    f.wishes.arbiter = true;
    return 0;
}

static void on_primary(void)
{
    remus_preflight_primary(&f.refusals, &f.guest, &f.host, &f.wishes);
}

static void on_secondary(void)
{
    remus_preflight_secondary(&f.refusals, &f.guest, &f.host, &f.meets, &f.wishes);
}

/* Exactly one refusal, and it holds these words. */
static void only(const char *a, const char *b)
{
    if (f.refusals.count != 1)
        fail_msg("%u refusals, the first: %s", f.refusals.count, f.refusals.text[0]);
    if (!strstr(f.refusals.text[0], a) || !strstr(f.refusals.text[0], b))
        fail_msg("'%s' lacks '%s' or '%s'", f.refusals.text[0], a, b);
}

#define PRIMARY(test, change, a, b) \
    static void test(void **state) \
    { \
        (void)state; \
        change; \
        on_primary(); \
        only(a, b); \
    }
#define SECONDARY(test, change, a, b) \
    static void test(void **state) \
    { \
        (void)state; \
        change; \
        on_secondary(); \
        only(a, b); \
    }

static void a_fit_guest_is_accepted_on_both_sides(void **state)
{
    (void)state;
    on_primary();
    remus_preflight_pair(&f.refusals, &f.host, &f.other);
    on_secondary();
    assert_int_equal(f.refusals.count, 0);
}

PRIMARY(a_domain_that_is_not_there, f.guest.exists = false, "no domain web1", "xl list")
PRIMARY(dom0, f.guest.domid = 0, "dom0", "guest")
PRIMARY(a_guest_that_is_protected_already, f.guest.locked = true; f.guest.locked_pid = 42,
        "process 42", "remus-status")
PRIMARY(a_paused_guest, f.guest.paused = true, "paused", "xl unpause web1")
PRIMARY(a_guest_that_has_shut_down, f.guest.shut_down = true, "not running", "web1")
PRIMARY(a_dying_guest, f.guest.dying = true, "not running", "web1")
PRIMARY(a_pv_guest, f.guest.type = REMUS_GUEST_PV, "PV guest", "type=\"pvh\"")
PRIMARY(an_hvm_guest_with_a_device_model,
        f.guest.type = REMUS_GUEST_HVM; f.guest.device_model = true, "device model", "PVH")
PRIMARY(a_guest_that_cannot_suspend, f.guest.suspend_feature = false, "feature-suspend", "kernel")
PRIMARY(fifo_event_channels, f.guest.fifo = true, "FIFO", "xen.fifo_events=0")
PRIMARY(an_unknown_event_channel_abi, f.guest.abi_known = false, "event channel", "web1")
PRIMARY(too_many_vcpus, f.guest.vcpus = 33, "33 vCPUs", "32")
PRIMARY(a_passed_through_device, f.guest.passthrough = 1, "passed-through", "detach")
PRIMARY(a_device_of_another_kind, f.guest.other_devices = 1; strcpy(f.guest.other_device, "vtpm"),
        "vtpm", "detach")
PRIMARY(a_disk_that_cannot_be_taken_over,
        f.guest.disks = 1; strcpy(f.guest.disk_error, "disk 51712 is not connected"),
        "disk 51712", "not connected")
PRIMARY(a_writable_disk_with_d_alone,
        f.guest.disks = f.guest.writable_disks = 1; f.wishes.no_disk = true, "writable", "-F")
PRIMARY(an_interface_of_another_backend, f.guest.vif[0].kernel_backend = false, "interface 0",
        "kernel")
PRIMARY(an_interface_that_is_not_connected, f.guest.vif[0].connected = false, "not connected",
        "booted")
PRIMARY(an_interface_with_several_queues, f.guest.vif[0].queues = 2, "2 queues", "max_queues=1")
PRIMARY(an_interface_with_a_name_of_its_own, strcpy(f.guest.vif[0].ifname, "web"), "called web",
        "vif7.0")
PRIMARY(an_interface_without_bridge, f.guest.vif[0].bridge[0] = '\0', "no bridge", "bridge=")
PRIMARY(too_many_interfaces, unsigned int i; for (i = 1; i < REMUS_VIFS_MAX; i++)
        f.guest.vif[i] = f.guest.vif[0]; f.guest.vifs = REMUS_VIFS_MAX + 1, "9 network", "8")
PRIMARY(no_arbiter_without_unsafe, f.wishes.arbiter = false, "--arbiter", "-F")
PRIMARY(no_net_without_unsafe, f.wishes.no_net = true, "-n", "-F")
PRIMARY(another_xen_series, strcpy(f.host.xen, "4.18.0"), "4.18.0", "4.17")
PRIMARY(a_xen_whose_number_only_begins_alike, strcpy(f.host.xen, "4.170"), "4.170", "4.17")
PRIMARY(a_missing_program, strcpy(f.host.missing_program, "colo-proxyd"),
        "/usr/local/lib/remus/colo-proxyd", "--libexec")
PRIMARY(a_missing_device, strcpy(f.host.missing_device, "/dev/xen/evtchn");
        strcpy(f.host.missing_module, "xen-evtchn"), "/dev/xen/evtchn", "modprobe xen-evtchn")
PRIMARY(a_kernel_that_cannot_hold_packets, f.host.nft_queue = false;
        strcpy(f.host.nft_error, "no such expression"), "no such expression", "nft_queue")
PRIMARY(a_bridge_that_calls_ip, f.host.bridge_calls_ip = true, "br_netfilter", "sysctl")
PRIMARY(a_kernel_without_tls, strcpy(f.host.tls_error, "none: run modprobe tls"), "modprobe tls",
        "--plain")

static void a_disk_is_fine(void **state)
{
    (void)state;
    f.guest.disks = f.guest.writable_disks = f.guest.disk_count = 1;
    on_primary();
    assert_int_equal(f.refusals.count, 0);
}

static void d_accepts_read_only_disks_and_with_f_all(void **state)
{
    (void)state;
    f.guest.disks = 1;
    f.wishes.no_disk = true;
    on_primary();
    f.guest.writable_disks = 1;
    f.wishes.unsafe = true;
    on_primary();
    assert_int_equal(f.refusals.count, 0);
}

static void n_with_f_asks_nothing_of_the_interfaces(void **state)
{
    (void)state;
    f.wishes.no_net = f.wishes.unsafe = true;
    f.guest.vif[0].queues = 4;
    f.guest.vif[0].bridge[0] = '\0';
    f.host.nft_queue = false;
    f.meets.bridge_there[0] = false;
    on_primary();
    on_secondary();
    assert_int_equal(f.refusals.count, 0);
}

static void plain_asks_no_tls_of_the_kernels(void **state)
{
    (void)state;
    strcpy(f.host.tls_error, "none");
    f.wishes.plain = true;
    on_primary();
    on_secondary();
    assert_int_equal(f.refusals.count, 0);
}

static void a_guest_without_interfaces_needs_no_packet_queue(void **state)
{
    (void)state;
    f.guest.vifs = 0;
    f.host.nft_queue = false;
    on_primary();
    assert_int_equal(f.refusals.count, 0);
}

static void all_reasons_are_given_at_once(void **state)
{
    (void)state;
    f.guest.passthrough = 1;
    f.guest.fifo = true;
    strcpy(f.host.xen, "4.14.0");
    on_primary();
    assert_int_equal(f.refusals.count, 3);
}

SECONDARY(a_name_that_is_taken_there, f.meets.name_taken = true, "web1 already", "rename")
SECONDARY(a_copy_that_is_left_there, f.meets.incoming_taken = true, "web1--incoming",
          "xl destroy web1--incoming")
SECONDARY(too_little_memory_for_xen, f.host.xen_free_kb = 139999, "136 MiB", "Xen has")
SECONDARY(too_little_memory_for_the_mirror, f.host.dom0_free_kb = 131072 + 65535, "192 MiB", "dom0")
SECONDARY(a_bridge_that_is_missing, f.meets.bridge_there[0] = false, "bridge br0", "same name")
SECONDARY(a_disk_that_is_missing_there,
          f.guest.disk_count = 1; strcpy(f.guest.disk[0].path, "/dev/vg/web1");
          f.guest.disk[0].sectors = 4097; f.meets.disk_rc[0] = -ENOENT, "/dev/vg/web1", "3 MiB")
SECONDARY(a_disk_that_is_smaller_there,
          f.guest.disk_count = 1; strcpy(f.guest.disk[0].path, "/dev/vg/web1");
          f.guest.disk[0].sectors = 4097; f.meets.disk_sectors[0] = 4096, "4096 sectors", "4097")
SECONDARY(a_disk_that_something_uses_there,
          f.guest.disk_count = 1; strcpy(f.guest.disk[0].path, "/dev/vg/web1");
          strcpy(f.meets.disk_user[0], "domain 7"), "/dev/vg/web1", "domain 7")
SECONDARY(a_bridge_of_another_kind, f.meets.bridge_foreign[0] = true, "br0", "Linux kernel")
SECONDARY(a_missing_tun, strcpy(f.host.missing_device, "/dev/net/tun");
          strcpy(f.host.missing_module, "tun"), "/dev/net/tun", "modprobe tun")
SECONDARY(a_kernel_without_tls_there, strcpy(f.host.tls_error, "none: run modprobe tls"),
          "modprobe tls", "--plain")
SECONDARY(a_missing_program_there, strcpy(f.host.missing_program, "colo-shadowd"), "colo-shadowd",
          "make install")
SECONDARY(another_xen_series_there, strcpy(f.host.xen, "4.16.2"), "4.16.2", "4.17")

static void exactly_enough_memory_is_enough(void **state)
{
    (void)state;
    f.host.xen_free_kb = f.guest.need_kb;
    f.host.dom0_free_kb = f.guest.memory_kb + REMUS_MIRROR_SPARE_KB;
    on_secondary();
    assert_int_equal(f.refusals.count, 0);
}

static void the_same_host(void **state)
{
    (void)state;
    f.other = f.host;
    strcpy(f.other.name, "another-name");
    strcpy(f.other.xen, "4.17.4");
    remus_preflight_pair(&f.refusals, &f.host, &f.other);
    only("another-name", "this host itself");
}

static void two_versions_of_xen(void **state)
{
    (void)state;
    strcpy(f.other.xen, "4.17.4");
    remus_preflight_pair(&f.refusals, &f.host, &f.other);
    only("4.17.5 here", "4.17.4 on beta");
}

static void more_refusals_than_there_is_room_for_are_cut(void **state)
{
    unsigned int i;

    (void)state;
    for (i = 0; i < REMUS_REFUSALS_MAX + 5; i++)
        remus_refuse(&f.refusals, "%0400u", i);
    assert_int_equal(f.refusals.count, REMUS_REFUSALS_MAX);
    assert_int_equal(strlen(f.refusals.text[0]), REMUS_REFUSAL_BYTES - 1);
}

/* ---- The command line ---- */

static struct remus_options o;
static char error[OPTIONS_ERROR_BYTES];

/* Splits at blanks; "''" is an empty argument. */
static int parse(const char *line)
{
    static char text[256];
    static char *argv[40];
    char *word, *rest = text;
    int argc = 0;

    error[0] = '\0';
    snprintf(text, sizeof(text), "remus %s", line);
    while ((word = strsep(&rest, " ")))
        argv[argc++] = strcmp(word, "''") ? word : word + 2;
    argv[argc] = NULL;
    return remus_options_parse(argc, argv, &o, error);
}

static void a_plain_command_line_gives_defaults(void **state)
{
    (void)state;
    assert_int_equal(parse("--colo web1 beta"), 0);
    assert_string_equal(o.domain, "web1");
    assert_string_equal(o.host, "beta");
    assert_string_equal(o.mode, "colo");
    assert_string_equal(o.ssh, "ssh");
    assert_string_equal(o.receive_command, "xl remus-receive");
    assert_int_equal(o.period_ms, 0);
    assert_false(o.no_net || o.no_disk || o.unsafe || o.json || o.verify);
}

static void unprotected_traffic_comes_from_the_line_and_from_a_file(void **state)
{
    char path[] = "/tmp/test-bypass-XXXXXX", line[200];
    int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");

    (void)state;
    assert_non_null(file);
    fputs("# what the cluster says\n\n  udp port 5405 # corosync\n"
          "tcp port 22 peer 10.0.0.0/24\n", file);
    fclose(file);
    snprintf(line, sizeof(line), "-c --bypass icmp --bypass-file %s w h", path);
    assert_int_equal(parse(line), 0);
    assert_int_equal(o.bypass_count, 3);
    assert_int_equal(o.bypass[0].proto, 1);
    assert_int_equal(o.bypass[1].port[1], 5405);
    assert_int_equal(o.bypass[2].bits, 24);
    snprintf(line, sizeof(line), "-c -n -F --bypass icmp w h");
    assert_int_equal(parse(line), -EINVAL);
    assert_non_null(strstr(error, "nothing is held"));
    file = fopen(path, "w");
    assert_non_null(file);
    fputs("udp\ntcp sport 22\n", file);
    fclose(file);
    snprintf(line, sizeof(line), "-c --bypass-file %s w h", path);
    assert_int_equal(parse(line), -EINVAL);
    assert_non_null(strstr(error, "line 2"));
    assert_non_null(strstr(error, "'sport' is not expected"));
    unlink(path);
    assert_int_equal(parse(line), -EINVAL);
    assert_non_null(strstr(error, "No such file"));
    assert_int_equal(parse("-c --bypass gre w h"), -EINVAL);
}

static void all_options_are_taken(void **state)
{
    (void)state;
    assert_int_equal(parse("-c -i 500 -u -d -n -F -v --verify --heartbeat 50 --timeout 1000 "
                           "--deadline 20 --libexec /x --data-address 10.0.0.2:99 -s myssh w h"),
                     0);
    assert_int_equal(o.period_ms, 500);
    assert_int_equal(o.heartbeat_ms, 50);
    assert_int_equal(o.timeout_ms, 1000);
    assert_int_equal(o.deadline_ms, 20);
    assert_true(o.no_disk && o.no_net && o.unsafe && o.verbose && o.verify);
    assert_string_equal(o.libexec, "/x");
    assert_string_equal(o.data_address, "10.0.0.2");
    assert_int_equal(o.data_port, 99);
    assert_string_equal(o.ssh, "myssh");
}

static void without_a_mode_it_is_remus(void **state)
{
    (void)state;
    assert_int_equal(parse("a b"), 0);
    assert_string_equal(o.mode, "remus");
    assert_int_equal(parse("--kemari a b"), 0);
    assert_string_equal(o.mode, "kemari");
    assert_int_equal(parse("--curling a b"), 0);
    assert_string_equal(o.mode, "curling");
    assert_int_equal(parse("--auto a b"), 0);
    assert_string_equal(o.mode, "auto");
}

static void the_last_word_on_compression_counts(void **state)
{
    (void)state;
    assert_int_equal(parse("-c w h"), 0);
    assert_false(o.compress);
    assert_int_equal(parse("-c -u --compress lz4 w h"), 0);
    assert_true(o.compress);
    assert_int_equal(parse("-c --compress lz4 -u w h"), 0);
    assert_false(o.compress);
    assert_int_equal(parse("-c --compress lz4 --compress none w h"), 0);
    assert_false(o.compress);
}

static void a_line_is_refused_with(const char *line, const char *words)
{
    assert_int_equal(parse(line), -EINVAL);
    if (!strstr(error, words))
        fail_msg("'%s': '%s' lacks '%s'", line, error, words);
}

static void wrong_lines_say_what_is_wrong(void **state)
{
    (void)state;
    a_line_is_refused_with("--colo", "DOMAIN and a HOST");
    a_line_is_refused_with("--colo web1", "HOST");
    a_line_is_refused_with("--colo a b c", "too many");
    a_line_is_refused_with("--colo --kemari a b", "one mode");
    a_line_is_refused_with("-c -p a b", "always used");
    a_line_is_refused_with("--remus -b a", "-F");
    a_line_is_refused_with("-c -F -b a", "--colo");
    a_line_is_refused_with("--auto -F -b a", "--auto");
    a_line_is_refused_with("-F -b --keep-trying a", "--keep-trying");
    a_line_is_refused_with("-F -b a b c", "too many");
    a_line_is_refused_with("-c -N script a b", "colo-proxyd");
    a_line_is_refused_with("-c -e a b", "takeover");
    a_line_is_refused_with("-c -i 0 a b", "-i");
    a_line_is_refused_with("-c -i 1x0 a b", "1x0");
    a_line_is_refused_with("-c -i -5 a b", "-5");
    a_line_is_refused_with("-c -i", "-i needs a value");
    a_line_is_refused_with("-c -Z a b", "-Z");
    a_line_is_refused_with("-c --nonsense a b", "--nonsense");
    a_line_is_refused_with("-c --timeout 600 --heartbeat 250 a b", "three times");
    a_line_is_refused_with("-c --timeout 499 a b", "499");
    a_line_is_refused_with("-c --heartbeat 2000 a b", "three times");
    a_line_is_refused_with("-c --json -q a b", "exclude");
    a_line_is_refused_with("-c --compress gzip a b", "lz4");
    a_line_is_refused_with("-c -s '' a b", "--data-address");
    a_line_is_refused_with("-c --data-address x:99999 a b", "x:99999");
    a_line_is_refused_with("-c --heartbeat-address :7000 a b", "--heartbeat-address");
    a_line_is_refused_with("-c --heartbeat-address [fe80::1 a b", "--heartbeat-address");
    a_line_is_refused_with("-c '' b", "DOMAIN is empty");
    a_line_is_refused_with("-c --release a b", "too many");
    a_line_is_refused_with("--release", "DOMAIN");
}

static void help_and_release_need_no_mode(void **state)
{
    (void)state;
    assert_int_equal(parse("--help"), 0);
    assert_true(o.help);
    assert_int_equal(parse("--release web1"), 0);
    assert_true(o.release);
}

static const char *conf_file(const char *text)
{
    static char path[] = "/tmp/remus-conf-XXXXXX";
    FILE *file;
    int fd;

    strcpy(path + sizeof(path) - 7, "XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    file = fdopen(fd, "w");
    fputs(text, file);
    fclose(file);
    return path;
}

static int defaults(const char *text, int *argc, char ***argv)
{
    static char remus[] = "remus", timeout[] = "--timeout", ms[] = "900", domain[] = "web1",
                host[] = "beta";
    static char *given[] = {remus, timeout, ms, domain, host, NULL};
    const char *path = text ? conf_file(text) : "/nowhere/remus.conf";
    int rc;

    error[0] = '\0';
    rc = remus_options_defaults(path, 5, given, argc, argv, error);
    if (text)
        unlink(path);
    return rc;
}

static void forget(int argc, char **argv)
{
    int i;

    for (i = 1; i < argc - 4; i++)
        free(argv[i]);
    free(argv);
}

static void a_file_has_options_that_the_line_overrides(void **state)
{
    char **argv;
    int argc;

    (void)state;
    assert_int_equal(defaults(NULL, &argc, &argv), 0);
    assert_int_equal(argc, 5);
    forget(argc, argv);
    assert_int_equal(defaults("# ours\n\n --colo \n--timeout 5000\n"
                              "--arbiter  etcd:http://10.0.0.3:2379\t\n-s ssh -p 2222",
                              &argc, &argv), 0);
    assert_int_equal(remus_options_parse(argc, argv, &o, error), 0);
    assert_int_equal(o.timeout_ms, 900);
    assert_string_equal(o.arbiter, "etcd:http://10.0.0.3:2379");
    assert_string_equal(o.ssh, "ssh -p 2222");
    assert_string_equal(o.host, "beta");
    assert_string_equal(o.mode, "colo");
    forget(argc, argv);
}

static void the_mode_of_a_file_gives_way(void **state)
{
    char **argv;
    int argc;

    (void)state;
    assert_int_equal(defaults("--colo\n", &argc, &argv), 0);
    argv[argc - 4] = (char *)"--kemari"; /* in the place of --timeout and its value */
    argv[argc - 3] = (char *)"--kemari";
    assert_int_equal(remus_options_parse(argc, argv, &o, error), 0);
    assert_string_equal(o.mode, "kemari");
    forget(argc, argv);
    assert_int_equal(defaults("--colo\n--auto\n", &argc, &argv), 0);
    assert_int_equal(remus_options_parse(argc, argv, &o, error), -EINVAL);
    forget(argc, argv);
}

static void a_file_that_is_wrong_names_its_line(void **state)
{
    char text[1000], **argv;
    int argc, i;

    (void)state;
    assert_int_equal(defaults("--colo\nweb2\n", &argc, &argv), -EINVAL);
    assert_non_null(strstr(error, "line 2"));
    memset(text, '-', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(defaults(text, &argc, &argv), -EINVAL);
    assert_non_null(strstr(error, "line 1"));
    for (i = 0; i < 600; i += 3)
        memcpy(text + i, "-F\n", 4);
    assert_int_equal(defaults(text, &argc, &argv), -EINVAL);
    assert_non_null(strstr(error, "63"));
}

static void an_arbiter_is_a_name(void **state)
{
    static const char *const wrong[] = {"", ":x", "-x", "../x", "a b", "Etcd", "a/b", "x:\n"};
    char text[400] = "x:";
    size_t i;

    (void)state;
    assert_true(remus_arbiter_ok("none") && remus_arbiter_is_none("none"));
    assert_true(remus_arbiter_ok("etcd:http://[fe80::1]:2379,http://b:1") &&
                remus_arbiter_ok("fence:") && remus_arbiter_ok("a-2"));
    for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_false(remus_arbiter_ok(wrong[i]));
    memset(text + 2, 'y', sizeof(text) - 3);
    assert_false(remus_arbiter_ok(text));
    assert_int_equal(parse("-c --arbiter ../x web1 beta"), -EINVAL);
    assert_non_null(strstr(error, "--arbiter"));
}

struct words {
    char *argv[64];
    int argc;
};

static void add_word(void *arg, const char *word)
{
    struct words *w = arg;

    w->argv[w->argc] = strdup(word);
    assert_non_null(w->argv[w->argc++]);
}

static void options_go_to_the_next_session_whole(void **state)
{
    static struct remus_options first;
    struct words w = {.argc = 0};
    char domain[] = "web1", host[] = "alpha";

    (void)state;
    assert_int_equal(parse("-c -i 500 --rest 20 --deadline 30 --heartbeat 50 --timeout 1000 "
                           "--sync-rate 7 --map-cache 64 --plain --compress lz4 -d -n -F --verify "
                           "--arbiter fence:x --reprotect a --keep-trying --json "
                           "--data-address :7000 --heartbeat-address 10.1.0.2 web1 beta"), 0);
    assert_false(remus_options_only_words(&o));
    first = o;
    add_word(&w, "remus");
    remus_options_words(&first, add_word, &w);
    w.argv[w.argc++] = domain;
    w.argv[w.argc++] = host;
    assert_int_equal(remus_options_parse(w.argc, w.argv, &o, error), 0);
    assert_true(remus_options_only_words(&o));
    assert_int_equal(o.period_ms, 500);
    assert_int_equal(o.rest_ms, 20);
    assert_int_equal(o.deadline_ms, 30);
    assert_int_equal(o.heartbeat_ms, 50);
    assert_int_equal(o.timeout_ms, 1000);
    assert_int_equal(o.sync_kib, 7 * 1024);
    assert_int_equal(o.map_cache_mib, 64);
    assert_true(o.plain && o.compress && o.no_disk && o.no_net && o.unsafe && o.verify);
    assert_string_equal(o.arbiter, "fence:x");
    assert_string_equal(o.host, "alpha");
    for (w.argc -= 2; w.argc;)
        free(w.argv[--w.argc]);
    add_word(&w, "remus");
    assert_int_equal(parse("-c --bypass icmp web1 beta"), 0);
    remus_options_words(&o, add_word, &w);
    assert_string_equal(w.argv[w.argc - 2], "--bypass");
    assert_string_equal(w.argv[w.argc - 1], "icmp");
    while (w.argc)
        free(w.argv[--w.argc]);
}

static void a_session_without_another_host_names_none(void **state)
{
    (void)state;
    assert_int_equal(parse("-F -b a"), 0);
    assert_true(o.blackhole && o.plain);
    assert_string_equal(o.host, "nowhere");
    /* As the distribution's command has it. */
    assert_int_equal(parse("-Fb a b"), 0);
    assert_string_equal(o.host, "nowhere");
    assert_false(remus_options_only_words(&o));
}

static void a_second_network_has_an_address(void **state)
{
    (void)state;
    assert_int_equal(parse("-c a b"), 0);
    assert_string_equal(o.heartbeat_address, "");
    assert_int_equal(parse("-c --heartbeat-address [fe80::1]:7001 a b"), 0);
    assert_string_equal(o.heartbeat_address, "fe80::1");
    assert_int_equal(o.heartbeat_port, 7001);
    /* It says how a host is reached: not for the next session, which is with another one. */
    assert_int_equal(parse("-c --heartbeat-address 10.1.0.2 a b"), 0);
    assert_false(remus_options_only_words(&o));
}

static void a_host_for_the_next_session_is_a_word(void **state)
{
    static const char *const wrong[] = {"-oProxyCommand=x", "a;b", "$(x)", "a'b"};
    char line[100];
    size_t i;

    (void)state;
    assert_int_equal(parse("-c --reprotect root@[fe80::1%eth0] web1 beta"), 0);
    assert_int_equal(parse("-c --reprotect ssh://alpha.example:22 web1 beta"), 0);
    for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        snprintf(line, sizeof(line), "-c --reprotect %s web1 beta", wrong[i]);
        assert_int_equal(parse(line), -EINVAL);
        assert_non_null(strstr(error, "--reprotect"));
    }
    assert_int_equal(parse("-c --reprotect a -s '' --data-address b web1 cmd"), -EINVAL);
}

static void options_end_at_the_domain(void **state)
{
    (void)state;
    /* A host named like an option never becomes one of ssh. */
    assert_int_equal(parse("-c web1 -oProxyCommand=x"), -EINVAL);
    assert_non_null(strstr(error, "not a host"));
}

#define T(test) cmocka_unit_test_setup(test, fit)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_fit_guest_is_accepted_on_both_sides),
        T(a_domain_that_is_not_there),
        T(dom0),
        T(a_guest_that_is_protected_already),
        T(a_paused_guest),
        T(a_guest_that_has_shut_down),
        T(a_dying_guest),
        T(a_pv_guest),
        T(an_hvm_guest_with_a_device_model),
        T(a_guest_that_cannot_suspend),
        T(fifo_event_channels),
        T(an_unknown_event_channel_abi),
        T(too_many_vcpus),
        T(a_passed_through_device),
        T(a_device_of_another_kind),
        T(a_disk_that_cannot_be_taken_over),
        T(a_disk_is_fine),
        T(a_disk_that_is_missing_there),
        T(a_disk_that_is_smaller_there),
        T(a_disk_that_something_uses_there),
        T(a_writable_disk_with_d_alone),
        T(an_interface_of_another_backend),
        T(an_interface_that_is_not_connected),
        T(an_interface_with_several_queues), T(an_interface_with_a_name_of_its_own),
        T(a_bridge_that_calls_ip),
        T(an_interface_without_bridge),
        T(too_many_interfaces),
        T(no_net_without_unsafe),
        T(no_arbiter_without_unsafe),
        T(another_xen_series),
        T(a_xen_whose_number_only_begins_alike),
        T(a_missing_program),
        T(a_missing_device),
        T(a_kernel_that_cannot_hold_packets),
        T(a_kernel_without_tls),
        T(plain_asks_no_tls_of_the_kernels),
        T(a_kernel_without_tls_there),
        T(d_accepts_read_only_disks_and_with_f_all),
        T(n_with_f_asks_nothing_of_the_interfaces),
        T(a_guest_without_interfaces_needs_no_packet_queue),
        T(all_reasons_are_given_at_once),
        T(a_name_that_is_taken_there),
        T(a_copy_that_is_left_there),
        T(too_little_memory_for_xen),
        T(too_little_memory_for_the_mirror),
        T(a_bridge_that_is_missing),
        T(a_bridge_of_another_kind),
        T(a_missing_tun),
        T(a_missing_program_there),
        T(another_xen_series_there),
        T(exactly_enough_memory_is_enough),
        T(the_same_host),
        T(two_versions_of_xen),
        T(more_refusals_than_there_is_room_for_are_cut),
        T(a_plain_command_line_gives_defaults),
        T(unprotected_traffic_comes_from_the_line_and_from_a_file),
        T(all_options_are_taken),
        T(without_a_mode_it_is_remus),
        T(the_last_word_on_compression_counts),
        T(wrong_lines_say_what_is_wrong),
        T(help_and_release_need_no_mode),
        T(options_end_at_the_domain),
        T(a_file_has_options_that_the_line_overrides),
        T(the_mode_of_a_file_gives_way),
        T(a_file_that_is_wrong_names_its_line),
        T(an_arbiter_is_a_name),
        T(options_go_to_the_next_session_whole),
        T(a_session_without_another_host_names_none),
        T(a_second_network_has_an_address),
        T(a_host_for_the_next_session_is_a_word),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
