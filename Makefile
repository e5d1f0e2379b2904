# Non-stop virtual machines for Xen. `make help` lists the targets, Config.mk the settings.

include Config.mk

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.SECONDARY:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

# ---- Sources -------------------------------------------------------------------------------
# A directory is a static library, the files with a main are not part of it.

MAINS_libxc := tools/libxc/save-helper.c tools/libxc/sr-tool.c
MAINS_libxl := tools/libxl/guest-helper.c
MAINS_remus := tools/remus/colo-blkd.c tools/remus/colo-proxyd.c tools/remus/colo-shadowd.c
SRC_libxc   := $(filter-out $(MAINS_libxc),$(sort $(wildcard tools/libxc/*.c)))
SRC_libxl   := $(filter-out $(MAINS_libxl) %.bpf.c,$(sort $(wildcard tools/libxl/*.c)))
SRC_remus   := $(filter-out $(MAINS_remus),$(sort $(wildcard tools/remus/*.c)))
SRC_xl      := $(filter-out tools/xl/main.c,$(sort $(wildcard tools/xl/*.c)))
LIBS        := xl libxl remus libxc
LIB_SOURCES := $(foreach l,$(LIBS),$(SRC_$(l)))

MAIN_xl                := tools/xl/main.c
MAIN_colo-blkd         := tools/remus/colo-blkd.c
MAIN_colo-proxyd       := tools/remus/colo-proxyd.c
MAIN_colo-shadowd      := tools/remus/colo-shadowd.c
MAIN_remus-guest       := tools/libxl/guest-helper.c
MAIN_remus-save-helper := tools/libxc/save-helper.c
MAIN_remus-sr          := tools/libxc/sr-tool.c
PROGRAMS := xl colo-blkd colo-proxyd colo-shadowd remus-guest remus-save-helper remus-sr
# Scripts that stand beside the programs.
SCRIPTS  := $(sort $(wildcard tools/libxl/remus-vif-script tools/remus/arbiters/arbiter-*))
# A program whose source is not there is not built.
BUILT    := $(foreach p,$(PROGRAMS),$(if $(wildcard $(MAIN_$(p))),$(p)))

# A program that lab tests run in a host, in the place of a coordinator: with its libraries.
LAB_TOOLS := disk-driver tls-driver

UNIT     := $(patsubst tests/unit/%.c,%,$(sort $(wildcard tests/unit/test_*.c)))
FUZZ     := $(patsubst tests/fuzz/%.c,%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))
BENCH    := $(patsubst tests/bench/%.c,%,$(sort $(wildcard tests/bench/bench_*.c)))
SIM_SRC  := $(sort $(wildcard tests/sim/*.c))

# ---- Three variants of every object: plain, with sanitizers, with the fuzzer's coverage ---------

VARIANTS   := plain san fuzz
CC_plain    = $(CC)
CC_san      = $(CC)
CC_fuzz     = $(CLANG)
FLAGS_plain =
# Behind CFLAGS: what the sanitizers put in takes a compiler long to optimize.
FLAGS_san   = $(SAN) -O1
FLAGS_fuzz  = $(SAN) -O1 -fsanitize=fuzzer-no-link

# The file changes when compiler or flags do; everything that was built with others is built again.
define VARIANT
$(O)/$(1)/flags: FORCE
	@mkdir -p $$(@D)
	@printf '%s\n' "$$(subst ",,$$(CC_$(1)) $$(CPPFLAGS) $$(CFLAGS_ALL) $$(FLAGS_$(1)) $$(LDFLAGS))" > $$@.new; \
	if cmp -s $$@.new $$@; then rm -f $$@.new; else mv $$@.new $$@; fi

$(O)/$(1)/%.o: %.c $(O)/$(1)/flags
	@mkdir -p $$(@D)
	$$(SAY) CC-$(1) $$<
	$$(Q)$$(CC_$(1)) $$(CPPFLAGS) $$(CFLAGS_ALL) $$(FLAGS_$(1)) -MMD -MP -c -o $$@ $$<

$(foreach l,$(LIBS),$(O)/$(1)/$(l).a): $(O)/$(1)/%.a:
	@mkdir -p $$(@D)
	$$(SAY) AR-$(1) $$@
	@rm -f $$@
	$$(Q)$$(AR) rcs $$@ $$(filter %.o,$$^)

$(foreach l,$(LIBS),$(eval $(O)/$(1)/$(l).a: $(SRC_$(l):%.c=$(O)/$(1)/%.o) $(O)/$(1)/flags))
ARCHIVES_$(1) := $(LIBS:%=$(O)/$(1)/%.a)
LINK_$(1)      = -Wl,--start-group $$(ARCHIVES_$(1)) -Wl,--end-group
endef

# A program for the kernel, as bytes that are compiled in.
$(O)/bpf/%.bpf.o: tools/libxl/%.bpf.c tools/libxl/%_map.h xen/include/public/remus.h
	@mkdir -p $(@D)
	$(SAY) BPF $<
	$(Q)$(CLANG) -O2 -g --target=bpf -mcpu=v3 -ffreestanding -I. -I/usr/include/$(shell $(CC) -print-multiarch) $(WARNINGS) -c -o $@ $<
$(O)/bpf/%.bpf.inc: $(O)/bpf/%.bpf.o
	$(Q)od -An -v -tx1 $< | sed 's/ \(..\)/0x\1,/g' > $@
$(foreach v,$(VARIANTS),$(O)/$(v)/tools/libxl/remus_offsets.o): $(O)/bpf/offsets.bpf.inc

# V=1 shows the commands.
ifeq ($(V),1)
SAY := @:
Q   :=
else
SAY := @printf '  %-8s %s\n'
Q   := @
endif

$(foreach v,$(VARIANTS),$(eval $(call VARIANT,$(v))))

-include $(foreach v,$(VARIANTS),$(shell test -d $(O)/$(v) && find $(O)/$(v) -name '*.d'))

# ---- Programs ------------------------------------------------------------------------------

define PROGRAM
$(O)/bin/$(1): $(MAIN_$(1):%.c=$(O)/plain/%.o) $(ARCHIVES_plain)
	@mkdir -p $$(@D)
	$$(SAY) LINK $$@
	$$(Q)$$(CC) $$(CFLAGS_ALL) $$(LDFLAGS) -o $$@ $$< $$(LINK_plain) $$(LDLIBS)
endef
$(foreach p,$(PROGRAMS),$(eval $(call PROGRAM,$(p))))

define SCRIPT
$(O)/bin/$(notdir $(1)): $(1)
	@mkdir -p $$(@D)
	$$(Q)$(INSTALL) -m 755 $$< $$@
endef
$(foreach s,$(SCRIPTS),$(eval $(call SCRIPT,$(s))))

all: $(BUILT:%=$(O)/bin/%) $(addprefix $(O)/bin/,$(notdir $(SCRIPTS))) $(if $(SIM_SRC),$(O)/tests/sim/sim) \
	$(LAB_TOOLS:%=$(O)/tests/lab/%)

# ---- Tests without a lab --------------------------------------------------------------------
# A test links the libraries, or, when its first line is /* LINK: file.c file.c ... */, just those
# sources: so it can put its own functions in the place of the Xen libraries'.

link_line = $(shell sed -n '1s,^/\* LINK:\(.*\)\*/.*,\1,p' $(1))

# $(1) directory, $(2) name, $(3) variant, $(4) compiler, $(5) flags for linking, $(6) libraries
define TEST
TEST_LINK_$(2) := $(call link_line,tests/$(1)/$(2).c)
$(O)/tests/$(1)/$(2): $(O)/$(3)/tests/$(1)/$(2).o \
		$$(if $$(TEST_LINK_$(2)),$$(TEST_LINK_$(2):%.c=$(O)/$(3)/%.o),$$(ARCHIVES_$(3)))
	@mkdir -p $$(@D)
	$$(SAY) LINK $$@
	$$(Q)$(4) $$(CFLAGS_ALL) $$(LDFLAGS) $(5) -o $$@ $$(filter %.o,$$^) \
		$$(if $$(TEST_LINK_$(2)),,$$(LINK_$(3))) $(6) $$(LDLIBS)
endef
$(foreach t,$(UNIT),$(eval $(call TEST,unit,$(t),san,$$(CC),$$(SAN),-lcmocka)))
$(foreach t,$(FUZZ),$(eval $(call TEST,fuzz,$(t),fuzz,$$(CLANG),$$(SAN) -fsanitize=fuzzer)))
$(foreach t,$(BENCH),$(eval $(call TEST,bench,$(t),plain,$$(CC),)))

# The simulator: all of tests/sim/*.c in one program, with the plain libraries (it runs thousands of
# seeds), or with the sources of the LINK line of its first file.
SIM_LINK := $(if $(SIM_SRC),$(call link_line,$(firstword $(SIM_SRC))))
$(O)/tests/sim/sim: $(SIM_SRC:%.c=$(O)/plain/%.o) \
		$(if $(SIM_LINK),$(SIM_LINK:%.c=$(O)/plain/%.o),$(ARCHIVES_plain))
	@mkdir -p $(@D)
	$(SAY) LINK $@
	$(Q)$(CC) $(CFLAGS_ALL) $(LDFLAGS) -o $@ $(filter %.o,$^) \
		$(if $(SIM_LINK),,$(LINK_plain)) $(LDLIBS)

$(O)/tests/lab/%: $(O)/plain/tests/lab/tools/%.o $(ARCHIVES_plain)
	@mkdir -p $(@D)
	$(SAY) LINK $@
	$(Q)$(CC) $(CFLAGS_ALL) $(LDFLAGS) -o $@ $< $(LINK_plain) $(LDLIBS)

unit: $(UNIT:%=$(O)/tests/unit/%)
fuzz-build: $(FUZZ:%=$(O)/tests/fuzz/%)
bench-build: $(BENCH:%=$(O)/tests/bench/%)

# ---- Checks ---------------------------------------------------------------------------------

RESULTS := $(O)/results
SUM      = tests/run-summary $(RESULTS)
# Every stage runs and is counted, also after one has failed; the last line sums up.
JOBS    ?= $(shell nproc)

check-fast:
	@$(SUM) --begin
	@$(MAKE) --no-print-directory stages-fast
	@$(SUM) --total

# The lab's images are built beside the first stages, which leave a core idle for much of the time.
check: deps
	@$(SUM) --begin
	@mkdir -p $(O); tests/lab/lab build > $(O)/lab-build.log 2>&1 & \
	$(MAKE) --no-print-directory stages-fast; status=$$?; wait; exit $$status
	@$(MAKE) --no-print-directory stages-lab
	@$(SUM) --total

# The resource agent's tests wait for time to pass for much longer than they compute.
stages-fast:
	@mkdir -p $(O); $(MAKE) --no-print-directory stage-ocf > $(O)/ocf-stage.log 2>&1 & \
	$(MAKE) --no-print-directory stages-others; status=$$?; wait; cat $(O)/ocf-stage.log; exit $$status

stages-others:
	@$(SUM) build-$(notdir $(GCC)) $(MAKE) --no-print-directory -k -j$(JOBS) CC=$(GCC) all unit
	@$(SUM) build-$(notdir $(CLANG)) $(MAKE) --no-print-directory -k -j$(JOBS) CC=$(CLANG) \
		O=$(O)/$(notdir $(CLANG)) all
	@$(SUM) build-fuzz $(MAKE) --no-print-directory -k -j$(JOBS) fuzz-build
	@$(MAKE) --no-print-directory -j$(RUN_JOBS) --output-sync=target $(STAGES:%=stage-%)

STAGES   := style units bench-report sim $(UNIT) $(FUZZ)
RUN_JOBS ?= $(shell expr $(JOBS) + 1)

stage-ocf:
	@$(SUM) ocf tests/ocf.sh $(O)
stage-style:
	@$(SUM) style tests/style.sh
stage-units:
	@$(SUM) units tests/units.sh $(O)
stage-bench-report:
	@$(SUM) bench-report tests/bench/check-report
stage-sim:
	@BUILD=$(O) $(SUM) sim tests/sim/check.sh
$(UNIT:%=stage-%): stage-%:
	@$(SUM) $* $(O)/tests/unit/$*
$(FUZZ:%=stage-%): stage-%:
	@$(SUM) $* tests/fuzz-run $(O) $* $(FUZZ_SECONDS)

stages-lab: all
	@BUILD=$(O) $(SUM) lab tests/lab/run-all

check-rest: deps all
	@BUILD=$(O) tests/lab/run-all rest

fuzz: fuzz-build
	@$(SUM) --begin
	@$(foreach t,$(FUZZ),$(SUM) $(t) tests/fuzz-run $(O) $(t) $(FUZZ_LONG_SECONDS);) :
	@$(SUM) --total

demo: deps all
	@BUILD=$(O) tests/lab/demo

bench: deps all bench-build
	@BUILD=$(O) tests/bench/bench

# MODES_OPTIONS="--modes remus,colo --workloads web --seconds 10": a part of it.
bench-modes: deps all
	@BUILD=$(O) tests/bench/bench modes $(MODES_OPTIONS)

soak: deps all
	@BUILD=$(O) tests/lab/soak

# ---- What a machine needs ---------------------------------------------------------------------

deps:
	@tests/deps packages.txt $(wildcard tests/lab/packages.txt)

# A host that only builds and runs it needs no lab.
deps-build:
	@tests/deps packages.txt

# ---- Installation -----------------------------------------------------------------------------

HELPERS := $(filter-out xl,$(BUILT)) $(notdir $(SCRIPTS))
# Units of systemd name the program by its path.
UNITS   := $(patsubst tools/remus/systemd/%.in,%,$(sort $(wildcard tools/remus/systemd/*.in)))

OCF     := $(if $(wildcard tools/remus/ocf/remus),$(O)/ocf/remus)

$(O)/ocf/%: tools/remus/ocf/% FORCE
	@mkdir -p $(@D)
	$(Q)sed 's,@SBINDIR@,$(SBINDIR),g' $< > $@.new && chmod 755 $@.new && mv $@.new $@

$(O)/units/%: tools/remus/systemd/%.in FORCE
	@mkdir -p $(@D)
	$(Q)sed 's,@SBINDIR@,$(SBINDIR),g' $< > $@

MANPAGES := $(sort $(wildcard docs/man/*.[1578]))
# man1/xl-remus.1
MANNAMES := $(foreach p,$(MANPAGES),man$(lastword $(subst ., ,$(p)))/$(notdir $(p)))
DOCS     := $(sort $(wildcard docs/*.md))

install: all $(UNITS:%=$(O)/units/%) $(OCF)
	$(INSTALL) -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(LIBEXEC) $(DESTDIR)$(INCDIR)/xen/public \
		$(addprefix $(DESTDIR)$(MANDIR)/,$(sort $(dir $(MANNAMES))))
	$(INSTALL) -m 755 $(O)/bin/xl $(DESTDIR)$(SBINDIR)/xl
	$(foreach p,$(HELPERS),$(INSTALL) -m 755 $(O)/bin/$(p) $(DESTDIR)$(LIBEXEC)/$(p) &&) :
	$(INSTALL) -m 644 xen/include/public/remus.h $(DESTDIR)$(INCDIR)/xen/public/remus.h
	$(INSTALL) -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(OCFDIR)
	$(foreach p,$(OCF),$(INSTALL) -m 755 $(p) $(DESTDIR)$(OCFDIR)/$(notdir $(p)) &&) :
	$(foreach p,$(UNITS),$(INSTALL) -m 644 $(O)/units/$(p) $(DESTDIR)$(UNITDIR)/$(p) &&) :
	$(foreach p,$(MANNAMES),$(INSTALL) -m 644 docs/man/$(notdir $(p)) $(DESTDIR)$(MANDIR)/$(p) &&) :
	$(INSTALL) -d $(DESTDIR)$(DOCDIR)
	$(INSTALL) -m 644 $(DOCS) $(DESTDIR)$(DOCDIR)

uninstall:
	rm -f $(DESTDIR)$(SBINDIR)/xl $(patsubst %,$(DESTDIR)$(LIBEXEC)/%,$(PROGRAMS) $(notdir $(SCRIPTS))) \
		$(DESTDIR)$(INCDIR)/xen/public/remus.h \
		$(MANNAMES:%=$(DESTDIR)$(MANDIR)/%) $(UNITS:%=$(DESTDIR)$(UNITDIR)/%) \
		$(OCF:$(O)/ocf/%=$(DESTDIR)$(OCFDIR)/%) $(DOCS:docs/%=$(DESTDIR)$(DOCDIR)/%)
	-rmdir $(DESTDIR)$(LIBEXEC) $(DESTDIR)$(DOCDIR)

# ---- The rest -----------------------------------------------------------------------------------

# Leaves the lab's images, which take minutes to build; distclean removes them too.
clean:
	rm -rf $(VARIANTS:%=$(O)/%) $(O)/bin $(O)/units $(O)/ocf $(O)/tests $(O)/logs $(O)/results $(O)/$(notdir $(CLANG))

distclean: clean
	rm -rf $(O)

format:
	clang-format -i $(wildcard tools/xl/*.[ch] tools/libxl/*.[ch] tools/libxc/*.[ch] tools/remus/*.[ch])

help:
	@echo 'make               build $(O)/bin/{xl,...} (CC=gcc or clang, O=directory, V=1)'
	@echo 'make demo          packages, build, two Xen hosts in the lab, failover under a client'
	@echo 'make check         packages, check-fast and the lab tests; ends with a count'
	@echo 'make check-fast    both compilers, unit tests with sanitizers, simulator, fuzz, style'
	@echo 'make unit          build the unit tests ($(O)/tests/unit/)'
	@echo 'make fuzz          each fuzz target for FUZZ_LONG_SECONDS ($(FUZZ_LONG_SECONDS))'
	@echo 'make check-rest    lab tests that check leaves out (tests/lab/not-in-check.txt)'
	@echo 'make bench         figures against the distribution'"'"'s xl remus, in the lab'
	@echo 'make bench-modes   of these, the report on all modes (MODES_OPTIONS=--help)'
	@echo 'make soak          long run in the lab'
	@echo 'make deps          apt-get install what is missing (deps-build: without the lab)'
	@echo 'make install       DESTDIR= PREFIX=$(PREFIX)'
	@echo 'make clean         remove what was built, not the lab images (distclean: those too)'

FORCE:
.PHONY: $(STAGES:%=stage-%) stage-ocf stages-others check-rest all unit fuzz-build bench-build check check-fast stages-fast stages-lab fuzz demo bench bench-modes soak deps deps-build \
	install uninstall clean distclean format help FORCE
