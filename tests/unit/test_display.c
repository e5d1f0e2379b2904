/* LINK: tools/xl/display.c tools/libxl/remus_message.c tools/libxl/remus_transition.c tools/libxl/remus_core.c */
/* What the operator sees: bar, live line, plain lines, JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/libxl/remus_message.h"
#include "tools/xl/display.h"

static struct remus_status copying(void)
{
    return (struct remus_status){
        .state = RP_COPY, .domain = "web1",
        .copy = {.pages_done = 16384, .pages_total = 32768, .bytes_written = 64ull << 20},
    };
}

static struct remus_status running(void)
{
    return (struct remus_status){
        .state = RP_RUN, .domain = "web1", .peer = "beta", .mode = "colo", .running_mode = "colo",
        .domid = 7, .protected_now = true, .epoch = 12, .epoch_age_ms = 1500, .checkpoints = 11,
        .dirty_pages = 540, .pause_us = 12345, .pause_us_median = 11000, .pause_us_max = 30000,
        .held_packets = 3, .output_delay_us = 850,
    };
}

static void bytes_and_times_are_short(void **state)
{
    char text[32];

    (void)state;
    display_bytes(text, sizeof(text), 1023);
    assert_string_equal(text, "1023 B");
    display_bytes(text, sizeof(text), 1024);
    assert_string_equal(text, "1.0 KiB");
    display_bytes(text, sizeof(text), 3ull << 30);
    assert_string_equal(text, "3.0 GiB");
    display_bytes(text, sizeof(text), UINT64_MAX);
    assert_string_equal(text, "16384.0 PiB");
    display_us(text, sizeof(text), 999);
    assert_string_equal(text, "999 us");
    display_us(text, sizeof(text), 3200);
    assert_string_equal(text, "3.2 ms");
    display_us(text, sizeof(text), 12400);
    assert_string_equal(text, "12 ms");
    display_us(text, sizeof(text), 12300000);
    assert_string_equal(text, "12.3 s");
}

static void the_bar_shows_share_rate_and_time_left(void **state)
{
    struct remus_status s = copying();
    char text[DISPLAY_LINE_BYTES];

    (void)state;
    display_bar(text, sizeof(text), 100, &s, 2000);
    /* 64 MiB in 2 s; 16384 pages = 64 MiB are left. */
    assert_non_null(strstr(text, " 50 %"));
    assert_non_null(strstr(text, "32.0 MiB/s"));
    assert_non_null(strstr(text, "0:02 left"));
    assert_non_null(strstr(text, "[===="));
    assert_true(strlen(text) <= 100);
}

static void the_bar_stands_before_anything_is_known(void **state)
{
    struct remus_status s = {.state = RP_COPY, .domain = "web1"};
    char text[DISPLAY_LINE_BYTES];

    (void)state;
    display_bar(text, sizeof(text), 80, &s, 0);
    assert_non_null(strstr(text, "0 %"));
    assert_null(strstr(text, "left"));
    s.copy.pages_done = 10; /* more than the total: never beyond 100 % */
    s.copy.pages_total = 5;
    display_bar(text, sizeof(text), 80, &s, 0);
    assert_non_null(strstr(text, "100 %"));
}

static void no_line_is_wider_than_the_terminal(void **state)
{
    struct remus_status s = running();
    char text[DISPLAY_LINE_BYTES];
    unsigned int columns;

    (void)state;
    memset(s.last_divergence, 'd', sizeof(s.last_divergence) - 1);
    memset(s.domain, 'n', sizeof(s.domain) - 1);
    for (columns = 19; columns < 300; columns++) {
        display_live(text, sizeof(text), columns, &s, 2000);
        assert_true(strlen(text) <= columns);
        s.state = s.state == RP_RUN ? RP_COPY : RP_RUN;
        s.copy = copying().copy;
    }
}

static void the_live_line_names_what_an_operator_wants(void **state)
{
    struct remus_status s = running();
    char text[DISPLAY_LINE_BYTES];

    (void)state;
    strcpy(s.last_divergence, "tcp 10.0.0.1:80");
    display_live(text, sizeof(text), 300, &s, 0);
    assert_string_equal(text, "web1 (colo): protected  epoch 12 (1500 ms)  dirty 540  "
                              "pause 12 ms  held 3  delay 850 us  "
                              "last divergence: tcp 10.0.0.1:80");
    s.verify_bad = 2;
    display_live(text, sizeof(text), 300, &s, 0);
    assert_non_null(strstr(text, "VERIFY: 2 bad"));
}

static void the_live_line_tells_what_auto_has_chosen(void **state)
{
    struct remus_status s = running();
    char text[DISPLAY_LINE_BYTES];

    (void)state;
    snprintf(s.mode, sizeof(s.mode), "auto");
    display_live(text, sizeof(text), 300, &s, 0);
    assert_ptr_equal(strstr(text, "web1 (auto: colo): protected"), text);
}

static void only_an_acknowledged_epoch_is_called_protected(void **state)
{
    struct remus_status s = running();

    (void)state;
    s.protected_now = false;
    assert_string_equal(display_state(&s), "first checkpoint");
    s.state = RP_SEND;
    assert_string_equal(display_state(&s), "first checkpoint");
    s.protected_now = true;
    assert_string_equal(display_state(&s), "protected");
}

/* ---- Streams ---- */

struct shown {
    struct display d;
    FILE *out, *err;
    char *out_text, *err_text;
    size_t out_bytes, err_bytes;
};

static void shown_open(struct shown *s, bool json, bool quiet)
{
    s->out = open_memstream(&s->out_text, &s->out_bytes);
    s->err = open_memstream(&s->err_text, &s->err_bytes);
    /* A memory stream has no descriptor: what display_init finds out is set by hand. */
    s->d = (struct display){.out = s->out, .err = s->err, .json = json, .quiet = quiet,
                            .columns = DISPLAY_LINE_BYTES - 1};
}

static void shown_close(struct shown *s)
{
    fclose(s->out);
    fclose(s->err);
    free(s->out_text);
    free(s->err_text);
}

static unsigned int lines(const char *text)
{
    unsigned int n = 0;

    for (; text && *text; text++)
        n += *text == '\n';
    return n;
}

static void plain_output_is_sparse_while_nothing_changes(void **state)
{
    struct remus_status s = running();
    struct shown x;
    uint64_t now;

    (void)state;
    shown_open(&x, false, false);
    for (now = 0; now < 25000; now += 100) {
        /* The inner states of a checkpoint are no news. */
        s.state = s.state == RP_RUN ? RP_SEND : RP_RUN;
        display_status(&x.d, now, &s);
    }
    fflush(x.out);
    assert_int_equal(lines(x.out_text), 3);
    s.protected_now = false;
    s.state = RP_ARBITRATE;
    display_status(&x.d, now, &s);
    assert_int_equal(lines(x.out_text), 4);
    assert_non_null(strstr(x.out_text, "peer lost"));
    shown_close(&x);
}

static void the_rate_counts_from_the_first_sight_of_the_copy(void **state)
{
    struct remus_status s = copying();
    struct shown x;

    (void)state;
    shown_open(&x, false, false);
    s.copy.bytes_written = 0;
    s.copy.pages_done = 0;
    display_status(&x.d, 500000, &s);
    s.copy = copying().copy;
    display_status(&x.d, 500000 + DISPLAY_PLAIN_MS, &s);
    fflush(x.out);
    /* 64 MiB in 10 s. */
    assert_non_null(strstr(x.out_text, "6.4 MiB/s"));
    shown_close(&x);
}

static void each_status_is_one_json_object(void **state)
{
    struct remus_status s = running();
    struct remus_message *m;
    struct shown x;
    uint64_t value;

    (void)state;
    shown_open(&x, true, false);
    strcpy(s.last_divergence, "a \"quoted\"\nthing");
    s.vif_count = s.cause_count = 1;
    strcpy(s.vifs[0].name, "vif7.0");
    s.vifs[0].classes[CTL_CLASS_UDP].primary = 5;
    strcpy(s.causes[0].flow, "udp port 53");
    s.causes[0].checkpoints[CTL_WHY_DEADLINE] = 4;
    s.failover.silence_ms = 3100;
    display_status(&x.d, 0, &s);
    display_message(&x.d, XC_SR_WARN, "beta", "some\nthing");
    display_end(&x.d, 3, "alone", "why", &s);
    fflush(x.out);
    assert_int_equal(lines(x.out_text), 3);
    assert_int_equal(remus_message_parse(&m, x.out_text, strcspn(x.out_text, "\n")), 0);
    assert_string_equal(remus_message_type(m), "status");
    assert_string_equal(remus_message_string(m, "domain"), "web1");
    assert_string_equal(remus_message_string(m, "state"), "protected");
    assert_true(remus_message_flag(m, "protected", false));
    assert_true(remus_message_number(m, "epoch", UINT64_MAX, &value));
    assert_int_equal(value, 12);
    assert_true(remus_message_number(m, "pause_us_max", UINT64_MAX, &value));
    assert_int_equal(value, 30000);
    assert_true(remus_message_number(m, "failover.silence_ms", UINT64_MAX, &value));
    assert_int_equal(value, 3100);
    assert_int_equal(remus_message_count(m, "vifs"), 1);
    assert_int_equal(remus_message_count(m, "classes"), 1);
    assert_string_equal(remus_message_item(m, "classes", 0, "class"), "udp");
    assert_int_equal(remus_message_item_number(m, "classes", 0, "primary"), 5);
    assert_string_equal(remus_message_item(m, "causes", 0, "flow"), "udp port 53");
    assert_int_equal(remus_message_item_number(m, "causes", 0, "deadline"), 4);
    assert_int_equal(remus_message_item_number(m, "causes", 1, "deadline"), 0);
    assert_int_equal(remus_message_item_number(m, "causes", 0, "flow"), 0);
    remus_message_free(m);
    fflush(x.err);
    assert_int_equal(x.err_bytes, 0);
    shown_close(&x);
}

static void quiet_shows_warnings_only(void **state)
{
    struct remus_status s = running();
    struct shown x;

    (void)state;
    shown_open(&x, false, true);
    display_status(&x.d, 0, &s);
    display_message(&x.d, XC_SR_INFO, NULL, "information");
    fflush(x.out);
    assert_int_equal(x.out_bytes, 0);
    display_message(&x.d, XC_SR_WARN, NULL, "danger");
    fflush(x.err);
    assert_string_equal(x.err_text, "xl: warning: danger\n");
    shown_close(&x);
}

static void a_message_does_not_tear_the_live_line(void **state)
{
    struct shown x;

    (void)state;
    shown_open(&x, false, false);
    x.d.terminal = x.d.live = true;
    display_message(&x.d, XC_SR_INFO, "beta", "hello");
    fflush(x.out);
    assert_string_equal(x.out_text, "\r\033[Kxl: beta: hello\n");
    assert_false(x.d.live);
    shown_close(&x);
}

static void what_the_other_host_says_cannot_move_the_cursor(void **state)
{
    struct shown x;

    (void)state;
    shown_open(&x, false, false);
    display_message(&x.d, XC_SR_INFO, "beta", "\033[2J\rgone");
    fflush(x.out);
    assert_string_equal(x.out_text, "xl: beta: ?[2J?gone\n");
    shown_close(&x);
}

static void the_end_sums_up(void **state)
{
    struct remus_status s = running();
    struct shown x;

    (void)state;
    shown_open(&x, false, false);
    s.copy_ms = 3400;
    display_end(&x.d, 0, "stopped", "web1 runs unprotected", &s);
    fflush(x.out);
    assert_string_equal(x.out_text, "xl: web1 runs unprotected\nxl: 11 checkpoints, initial copy "
                                    "3.4 s, pause 11 ms median 30 ms most, output delay 850 us\n");
    shown_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_and_times_are_short),
        cmocka_unit_test(the_bar_shows_share_rate_and_time_left),
        cmocka_unit_test(the_bar_stands_before_anything_is_known),
        cmocka_unit_test(no_line_is_wider_than_the_terminal),
        cmocka_unit_test(the_live_line_names_what_an_operator_wants),
        cmocka_unit_test(the_live_line_tells_what_auto_has_chosen),
        cmocka_unit_test(only_an_acknowledged_epoch_is_called_protected),
        cmocka_unit_test(plain_output_is_sparse_while_nothing_changes),
        cmocka_unit_test(the_rate_counts_from_the_first_sight_of_the_copy),
        cmocka_unit_test(each_status_is_one_json_object),
        cmocka_unit_test(quiet_shows_warnings_only),
        cmocka_unit_test(a_message_does_not_tear_the_live_line),
        cmocka_unit_test(what_the_other_host_says_cannot_move_the_cursor),
        cmocka_unit_test(the_end_sums_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
