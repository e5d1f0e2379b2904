# Settings of the build. Each can be given on make's command line: make CC=clang O=/tmp/out

VERSION  := 0.1

# Where everything that is built goes; the source tree stays clean.
O        ?= build

PREFIX   ?= /usr/local
DESTDIR  ?=
SBINDIR  ?= $(PREFIX)/sbin
LIBEXEC  ?= $(PREFIX)/lib/remus
INCDIR   ?= $(PREFIX)/include
MANDIR   ?= $(PREFIX)/share/man
DOCDIR   ?= $(PREFIX)/share/doc/xl-remus
UNITDIR  ?= $(PREFIX)/lib/systemd/system
# Pacemaker looks below /usr/lib/ocf/resource.d only: see xl-remus-ocf(7).
OCFDIR   ?= $(PREFIX)/lib/ocf/resource.d/remus

ifeq ($(origin CC),default)
CC       := gcc
endif
# The compiler of what the kernel runs (BPF), of the fuzz targets (libFuzzer), and the second one of
# check-fast.
CLANG    ?= clang
GCC      ?= gcc
AR       ?= ar
INSTALL  ?= install

# _GNU_SOURCE is set here, for every file (a file that sets it itself says 1).
CPPFLAGS += -I. -I$(O)/bpf -D_GNU_SOURCE -DREMUS_VERSION='"$(VERSION)"' -DREMUS_LIBEXEC='"$(LIBEXEC)"' \
            $(shell pkg-config --cflags-only-I libnl-3.0 2>/dev/null)
WARNINGS := -Wall -Wextra -Wshadow -Wvla -Werror
CFLAGS   ?= -O2 -g
CFLAGS_ALL = -std=gnu11 $(WARNINGS) $(CFLAGS) -fno-strict-aliasing -fstack-protector-strong -pthread

SAN      := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

LDFLAGS  += -Wl,--as-needed -Wl,-z,relro,-z,now -pthread
LDLIBS    = -lxenlight -lxlutil -lxenctrl -lxenforeignmemory -lxenguest -lxengnttab -lxenevtchn \
            -lxenstore -lxentoollog -lxentoolcore -luv -lxxhash -llz4 -lnftables -lbpf \
            -lnl-route-3 -lnl-nf-3 -lnl-genl-3 -lnl-3 \
            -lyajl -luuid -lgnutls -luring -lcap-ng -lseccomp -lm

# Seconds that each fuzz target runs in check-fast, and in `make fuzz`.
FUZZ_SECONDS      ?= 3
FUZZ_LONG_SECONDS ?= 120
