# make install and make uninstall, for people and for packagers.
#
#   PREFIX   where the program goes; a package uses /usr, which is the default,
#            because systemd and man look there without being told
#   DESTDIR  a directory to install into instead of /
#
# The program is in bin, not in sbin: the same binary is the client, and a user
# without root knocks with it.
PREFIX ?= /usr
DESTDIR ?=
INSTALL ?= install

bindir = $(DESTDIR)$(PREFIX)/bin
mandir = $(DESTDIR)$(PREFIX)/share/man
docdir = $(DESTDIR)$(PREFIX)/share/doc/sallyport
unitdir = $(DESTDIR)$(PREFIX)/lib/systemd/system
sysusersdir = $(DESTDIR)$(PREFIX)/lib/sysusers.d
confdir = $(DESTDIR)/etc/sallyport

units := sallyport.service sallyport-hide.service
manpages := sallyport.1 sallyport.toml.5 sallyport-protocol.7 sallyport.8
papers := LICENSE README.md CHANGELOG.md SECURITY.md

.PHONY: install uninstall

# Only a program that is missing is built: root needs no compiler.
$(PROGRAM):
	$(MAKE) build

# The example is mode 600, so that a copy of it is too: whoever reads a sequence
# can use it. A config that is there is never touched.
install: $(PROGRAM)
	$(INSTALL) -d -m 755 $(bindir) $(docdir) $(unitdir) $(sysusersdir) $(confdir)
	$(INSTALL) -m 755 $(PROGRAM) $(bindir)/sallyport
	for page in $(manpages); do \
		$(INSTALL) -D -m 644 doc/$$page $(mandir)/man$${page##*.}/$$page || exit; \
	done
	for unit in $(units); do \
		sed 's|/usr/bin/sallyport|$(PREFIX)/bin/sallyport|' packaging/$$unit >$(unitdir)/$$unit && \
		chmod 644 $(unitdir)/$$unit || exit; \
	done
	$(INSTALL) -m 644 packaging/sallyport.sysusers $(sysusersdir)/sallyport.conf
	$(INSTALL) -m 644 $(papers) $(docdir)
	$(INSTALL) -m 600 doc/sallyport.toml $(confdir)/sallyport.toml.example
	@echo "installed; next: systemd-sysusers, systemctl daemon-reload, then 'man 8 sallyport'"

# Leaves a config, the state and the firewall as they are.
uninstall:
	rm -f $(bindir)/sallyport $(sysusersdir)/sallyport.conf $(confdir)/sallyport.toml.example
	for page in $(manpages); do rm -f $(mandir)/man$${page##*.}/$$page || exit; done
	rm -f $(addprefix $(unitdir)/,$(units)) $(addprefix $(docdir)/,$(papers))
	-rmdir $(docdir) $(confdir)
	@echo "removed; ports that are still hidden come back with: nft delete table inet sallyport"
