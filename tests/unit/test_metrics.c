/* LINK: tools/xl/metrics.c tools/xl/display.c tools/libxl/remus_message.c tools/libxl/remus_transition.c tools/libxl/remus_core.c */
/* Metrics: the text keeps the rules of Prometheus' exposition format, whatever names there are. */
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
#include "tools/xl/metrics.h"

/* ---- The format's rules, from Prometheus' description of version 0.0.4 ---- */

#define NAMES_MAX  128u
#define SERIES_MAX 1024u

struct family {
    char name[96], type[16];
    unsigned int samples;
    bool helped, over;      /* another family has begun */
};

static struct family families[NAMES_MAX];
static char series[SERIES_MAX][512];
static unsigned int family_count, series_count;

static size_t name_length(const char *text, bool label)
{
    size_t n = 0;

    while ((text[n] >= 'a' && text[n] <= 'z') || (text[n] >= 'A' && text[n] <= 'Z') ||
           text[n] == '_' || (!label && text[n] == ':') || (n && text[n] >= '0' && text[n] <= '9'))
        n++;
    assert_true(n > 0);
    return n;
}

static struct family *family(const char *name, size_t length, bool make)
{
    unsigned int i;

    for (i = 0; i < family_count; i++)
        if (strlen(families[i].name) == length && !memcmp(families[i].name, name, length))
            break;
    if (i == family_count) {
        assert_true(make && family_count < NAMES_MAX && length < sizeof(families[i].name));
        memset(&families[i], 0, sizeof(families[i]));
        memcpy(families[i].name, name, length);
        family_count++;
    }
    /* All lines of one family stand together. */
    assert_false(families[i].over);
    if (i && !families[i].samples && !families[i].type[0])
        families[i - 1].over = true;
    return &families[i];
}

static void check_comment(const char *line)
{
    struct family *f;
    size_t length;
    bool help = !strncmp(line, "# HELP ", 7);

    assert_true(help || !strncmp(line, "# TYPE ", 7));
    length = name_length(line + 7, false);
    f = family(line + 7, length, true);
    assert_int_equal(line[7 + length], ' ');
    assert_int_equal(f->samples, 0);
    if (help) {
        assert_false(f->helped);
        assert_null(strchr(line, '\\'));
        f->helped = true;
    } else {
        assert_int_equal(f->type[0], 0);
        snprintf(f->type, sizeof(f->type), "%s", line + 8 + length);
        assert_true(!strcmp(f->type, "counter") || !strcmp(f->type, "gauge"));
        /* The convention that its linter checks. */
        assert_int_equal(!strcmp(f->type, "counter"),
                         strlen(f->name) > 6 && !strcmp(f->name + strlen(f->name) - 6, "_total"));
    }
}

static const char *check_labels(const char *at)
{
    assert_int_equal(*at, '{');
    do {
        at++;
        at += name_length(at, true);
        assert_memory_equal(at, "=\"", 2);
        for (at += 2; *at != '"'; at++) {
            assert_int_not_equal(*at, 0);
            if (*at == '\\') {
                at++;
                assert_non_null(strchr("\\\"n", *at));
            }
        }
        at++;
    } while (*at == ',');
    assert_int_equal(*at, '}');
    return at + 1;
}

static void check_sample(const char *line)
{
    size_t length = name_length(line, false);
    struct family *f = family(line, length, false);
    const char *end = check_labels(line + length);
    unsigned int i;
    char *number_end;

    assert_true(f->helped && f->type[0]);
    f->samples++;
    assert_int_equal(*end, ' ');
    (void)strtod(end + 1, &number_end);
    assert_true(number_end > end + 1 && !*number_end);
    assert_true((size_t)(end - line) < sizeof(series[0]) && series_count < SERIES_MAX);
    snprintf(series[series_count], sizeof(series[0]), "%.*s", (int)(end - line), line);
    for (i = 0; i < series_count; i++)
        assert_string_not_equal(series[i], series[series_count]);
    series_count++;
}

static void check_format(char *text)
{
    char *line, *end;

    family_count = series_count = 0;
    assert_int_equal(text[strlen(text) - 1], '\n');
    for (line = text; *line; line = end + 1) {
        end = strchr(line, '\n');
        *end = '\0';
        if (line[0] == '#')
            check_comment(line);
        else
            check_sample(line);
        *end = '\n';
    }
}

/* ---- Sessions ---- */

static char *text;
static size_t text_bytes;
static struct remus_message *records[4];
static struct metrics_session sessions[4];

static struct remus_message *record_of(struct remus_status *s)
{
    struct remus_object *o = remus_object_new("status");
    struct remus_message *m = NULL;
    char *line;

    display_status_fields(o, s);
    remus_object_number(o, "time", 1700000000);
    line = remus_object_finish(o);
    assert_int_equal(remus_message_parse(&m, line, strlen(line) - 1), 0);
    free(line);
    return m;
}

static void full(struct remus_status *s)
{
    memset(s, 0, sizeof(*s));
    snprintf(s->domain, sizeof(s->domain), "web1");
    snprintf(s->peer, sizeof(s->peer), "beta");
    snprintf(s->mode, sizeof(s->mode), "colo");
    snprintf(s->running_mode, sizeof(s->running_mode), "remus");
    s->protected_now = true;
    s->health = REMUS_HEALTHY;
    s->epoch = (1ull << 53) + 1;    /* a double would lose the last bit */
    s->lag_ms = 1234;
    s->pause_us = 7;
    s->requested[CTL_WHY_DEADLINE] = 3;
    s->net.lag_us = 1500000;
    s->copy.pages_done = 11;
    s->vif_count = 1;
    snprintf(s->vifs[0].name, sizeof(s->vifs[0].name), "vif1.0");
    s->vifs[0].classes[CTL_CLASS_TCP].primary = 5;
    s->cause_count = 2;             /* the same words twice */
    snprintf(s->causes[0].flow, sizeof(s->causes[0].flow), "tcp port 80");
    snprintf(s->causes[0].vif, sizeof(s->causes[0].vif), "vif1.0");
    s->causes[0].checkpoints[CTL_WHY_DIVERGED] = 9;
    s->causes[1] = s->causes[0];
    s->disk_count = 2;
    s->disks[0].vdev = 51712;
    s->disks[0].bytes = 1u << 30;
    s->disks[1].vdev = 51728;
}

static void print(unsigned int count)
{
    FILE *out;

    free(text);
    out = open_memstream(&text, &text_bytes);
    metrics_print(out, sessions, count);
    fclose(out);
    check_format(text);
}

static void set(unsigned int i, const char *domain, bool live, struct remus_status *s)
{
    remus_message_free(records[i]);
    records[i] = s ? record_of(s) : NULL;
    sessions[i] = (struct metrics_session){
        .live = live, .domain = domain, .peer = "beta", .role = "primary", .mode = "colo",
        .state = "protected", .record = records[i],
    };
}

static void has(const char *line)
{
    if (!strstr(text, line))
        fail_msg("'%s' is not in: %s", line, text);
}

static int end(void **state)
{
    unsigned int i;

    (void)state;
    free(text);
    text = NULL;
    for (i = 0; i < 4; i++) {
        remus_message_free(records[i]);
        records[i] = NULL;
    }
    return 0;
}

static void nothing_to_tell_is_told_in_the_format(void **state)
{
    (void)state;
    print(0);
    assert_int_equal(series_count, 0);
    assert_true(family_count > 30);
}

static void a_whole_session_gives_every_family_a_value(void **state)
{
    struct remus_status s;
    unsigned int i;

    (void)state;
    full(&s);
    set(0, "web1", true, &s);
    print(1);
    for (i = 0; i < family_count; i++)
        if (!families[i].samples)
            fail_msg("no sample of %s", families[i].name);
#define W "{domain=\"web1\",peer=\"beta\",role=\"primary\""
    has("xen_remus_session" W ",mode=\"colo\",running_mode=\"remus\",state=\"protected\"} 1\n");
    has("xen_remus_live" W "} 1\n");
    has("xen_remus_protected" W "} 1\n");
    has("xen_remus_health" W "} 2\n");
    has("xen_remus_epoch" W "} 9007199254740993\n");
    has("xen_remus_checkpoint_lag_seconds" W "} 1.234\n");
    has("xen_remus_pause_seconds" W ",which=\"newest\"} 0.000007\n");
    has("xen_remus_checkpoints_requested_total" W ",reason=\"deadline\"} 3\n");
    has("xen_remus_copy_output_lag_seconds" W "} 1.500000\n");
    has("xen_remus_initial_copy_pages" W ",which=\"done\"} 11\n");
    has("xen_remus_class_packets_total" W ",vif=\"vif1.0\",class=\"tcp\",guest=\"primary\"} 5\n");
    has("xen_remus_cause_checkpoints_total" W
        ",vif=\"vif1.0\",flow=\"tcp port 80\",reason=\"diverged\"} 9\n");
    has("xen_remus_disk_size_bytes" W ",disk=\"xvda\"} 1073741824\n");
    has("xen_remus_disk_size_bytes" W ",disk=\"xvdb\"} 0\n");
    has("xen_remus_record_timestamp_seconds" W "} 1700000000\n");
}

static void names_are_escaped(void **state)
{
    struct remus_status s;

    (void)state;
    full(&s);
    set(0, "a\"b\\c\nd{},=", true, &s);
    print(1);
    has("xen_remus_live{domain=\"a\\\"b\\\\c\\nd{},=\",peer");
}

static void several_sessions_stand_together_in_each_family(void **state)
{
    struct remus_status s;

    (void)state;
    full(&s);
    set(0, "web1", true, &s);
    set(1, "web2", true, NULL);
    set(2, "web3", false, &s);
    print(3);
    has("xen_remus_live{domain=\"web2\",peer=\"beta\",role=\"primary\"} 1\n");
    has("xen_remus_protected{domain=\"web2\",peer=\"beta\",role=\"primary\"} 0\n");
    /* What it recorded when it lived is true no more. */
    has("xen_remus_protected{domain=\"web3\",peer=\"beta\",role=\"primary\"} 0\n");
    has("xen_remus_health{domain=\"web3\",peer=\"beta\",role=\"primary\"} 0\n");
    has("domain=\"web3\",peer=\"beta\",role=\"primary\",mode=\"colo\",running_mode=\"remus\",state="
        "\"no process\"} 1\n");
}

static void of_two_of_the_same_name_the_live_one_is_told(void **state)
{
    struct remus_status s;

    (void)state;
    full(&s);
    set(0, "web1", false, &s);
    set(1, "web1", true, &s);
    set(2, "web1", true, &s);
    print(3);
    has("xen_remus_live{domain=\"web1\",peer=\"beta\",role=\"primary\"} 1\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(nothing_to_tell_is_told_in_the_format, end),
        cmocka_unit_test_teardown(a_whole_session_gives_every_family_a_value, end),
        cmocka_unit_test_teardown(names_are_escaped, end),
        cmocka_unit_test_teardown(several_sessions_stand_together_in_each_family, end),
        cmocka_unit_test_teardown(of_two_of_the_same_name_the_live_one_is_told, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
