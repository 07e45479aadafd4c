# make install and make uninstall, for people and for packagers; and, as targets of
# their own, make install-knockd and make uninstall-knockd: the names, the pages, the
# unit and the init script of knockd. A distribution's package knockd owns those paths,
# so install-knockd refuses to go over a knockd that is not ours.
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
manpages := sallyport.1 sallyport.toml.5 sallyport-encoded.7 sallyport-otp.7 sallyport-protocol.7 sallyport.8
papers := LICENSE README.md CHANGELOG.md SECURITY.md doc/knockd.md doc/phone.md doc/rules.md packaging/actions.conf packaging/knockd.init web/knock.html

sbindir = $(DESTDIR)$(PREFIX)/sbin
initdir = $(DESTDIR)/etc/init.d
defaultdir = $(DESTDIR)/etc/default
names = $(sbindir)/knockd $(bindir)/knock
namepages = $(mandir)/man1/knockd.1 $(mandir)/man1/knock.1

.PHONY: install uninstall install-knockd uninstall-knockd

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
	rm -f $(addprefix $(unitdir)/,$(units)) $(addprefix $(docdir)/,$(notdir $(papers)))
	-rmdir $(docdir) $(confdir)
	@echo "removed; ports that are still hidden come back with: nft delete table inet sallyport"

# The init script and /etc/default/knockd are an administrator's once they are there,
# also where the package that brought them is gone: they stay as they are.
install-knockd: install
	@for name in $(names); do \
		if [ -e $$name ] && ! [ -L $$name ]; then \
			echo "$$name is another program: remove its package first, which leaves /etc/knockd.conf and /etc/default/knockd (on Debian: apt remove knockd)" >&2; \
			exit 1; \
		fi; \
	done
	$(INSTALL) -d -m 755 $(sbindir) $(initdir) $(defaultdir)
	for name in $(names); do ln -sfn ../bin/sallyport $$name || exit; done
	for page in $(namepages); do $(INSTALL) -m 644 doc/$${page##*/} $$page || exit; done
	sed 's|/usr/sbin/knockd|$(PREFIX)/sbin/knockd|' packaging/knockd.service >$(unitdir)/knockd.service
	chmod 644 $(unitdir)/knockd.service
	[ -e $(defaultdir)/knockd ] || $(INSTALL) -m 644 packaging/knockd.default $(defaultdir)/knockd
	[ -e $(initdir)/knockd ] || { \
		sed 's|/usr/sbin/knockd|$(PREFIX)/sbin/knockd|' packaging/knockd.init >$(initdir)/knockd && \
		chmod 755 $(initdir)/knockd; }
	@! grep -q '^START_KNOCKD=' $(defaultdir)/knockd || grep -Eqx "START_KNOCKD=[\"']?1[\"']?" $(defaultdir)/knockd || \
		echo "note: $(defaultdir)/knockd says not to start knockd, and this unit heeds it where Debian's did not: write START_KNOCKD=1 there"
	@! grep -q -e '--pidfile' $(initdir)/knockd 2>/dev/null && \
		echo "note: $(initdir)/knockd is not ours; without systemd put ours in its place (install -m 755 $(docdir)/knockd.init $(initdir)/knockd), or after a knock 'restart' may start nothing" || true
	@echo "installed; next: systemctl daemon-reload, 'sallyport check --knockd /etc/knockd.conf', then 'systemctl restart knockd'"

# Takes away links that are ours, and nothing that an administrator may have changed.
uninstall-knockd:
	for name in $(names); do \
		case $$(readlink $$name) in */sallyport) rm -f $$name $(namepages) $(unitdir)/knockd.service ;; esac; \
	done
	@echo "removed; /etc/knockd.conf, /etc/default/knockd and /etc/init.d/knockd are left"
