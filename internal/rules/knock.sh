#!/bin/sh
# Knocks at a host's ports, with nothing installed but one of bash, nc, ncat, busybox
# or nmap. Made by sallyport rules --shell.
#
#   sh knock.sh HOST PORT...      PORT is 7000 or 7000/tcp, 8500/udp, icmp or 37/icmp
#
# HOST is a name, an IPv4 address or an IPv6 address without brackets. A knock has no
# answer: try the service behind it. The environment can say KNOCK_WITH=nc (or another
# of them) and KNOCK_WAIT=2, the seconds that a port without an answer gets.

# steps: what is knocked at where no PORT is given
STEPS=''

usage() {
	echo 'knock.sh: usage: sh knock.sh HOST PORT...   with ports as 7000, 7000/tcp or 8500/udp' >&2
	exit 2
}

bad() {
	echo "knock.sh: $1" >&2
	exit 2
}

failed() {
	echo "knock.sh: $1" >&2
	exit 1
}

# have: is there such a program
have() { command -v "$1" >/dev/null 2>&1; }

# bounded runs a command for so many seconds at most: a port that drops would keep it
# for minutes. The pipe or file that it reads must be its own, not the caller's.
bounded() {
	seconds=$1
	shift
	"$@" >/dev/null 2>&1 &
	knocker=$!
	(
		sleep "$seconds"
		kill "$knocker"
	) >/dev/null 2>&1 </dev/null &
	clock=$!
	wait "$knocker" 2>/dev/null
	kill "$clock" 2>/dev/null
	wait "$clock" 2>/dev/null
}

# old_nc: the first netcat of all, which knows no IPv6
old_nc() {
	case $(nc -h 2>&1 </dev/null) in
	*'[v1.10'*) return 0 ;;
	esac
	return 1
}

# choose prints the program to knock with
choose() {
	case $WITH in
	'') ;;
	bash | nc | ncat | busybox | nmap)
		have "$WITH" || bad "there is no $WITH here"
		echo "$WITH"
		return
		;;
	*) bad 'KNOCK_WITH must be bash, nc, ncat, busybox or nmap' ;;
	esac
	# Some builds of bash have no /dev/tcp: there it is a file that is not there.
	if have bash && ! LC_ALL=C bash -c ': </dev/tcp/127.0.0.1/x' 2>&1 | grep -q 'No such file'; then
		echo bash
		return
	fi
	case $HOST in
	*:*) if have nc && ! old_nc; then echo nc && return; fi ;;
	*) if have nc; then echo nc && return; fi ;;
	esac
	for program in ncat busybox nmap; do
		if have "$program"; then echo "$program" && return; fi
	done
	bad 'none of bash, nc, ncat, busybox and nmap is here: install one'
}

# The host and the port are arguments of the inner shell, never part of its text.
# shellcheck disable=SC2016
tcp() {
	case $PROGRAM in
	bash) bounded "$WAIT" bash -c ': <"/dev/tcp/$1/$2"' knock "$HOST" "$1" </dev/null ;;
	nc) bounded "$AT_MOST" nc -w "$WAIT" "$HOST" "$1" </dev/null ;;
	ncat) bounded "$AT_MOST" ncat -w "$WAIT" "$HOST" "$1" </dev/null ;;
	busybox) bounded "$AT_MOST" busybox nc -w "$WAIT" "$HOST" "$1" </dev/null ;;
	nmap) bounded 20 nmap $SIX -Pn -n --max-retries 0 -p "$1" "$HOST" </dev/null ;;
	esac
}

# One byte goes out: some of them send no datagram without any.
# shellcheck disable=SC2016
udp() {
	case $PROGRAM in
	bash) bounded "$WAIT" bash -c 'echo >"/dev/udp/$1/$2"' knock "$HOST" "$1" </dev/null ;;
	nc) echo | bounded_pipe nc -u -w "$WAIT" "$HOST" "$1" ;;
	ncat) echo | bounded_pipe ncat -u -w "$WAIT" "$HOST" "$1" ;;
	busybox) busybox_udp "$1" ;;
	nmap)
		[ "$(id -u)" = 0 ] || bad 'nmap alone sends datagrams only as root: install nc, or knock as root'
		bounded 20 nmap $SIX -sU -Pn -n --max-retries 0 -p "$1" "$HOST" </dev/null
		;;
	esac
}

# busybox_udp: some builds of busybox have an nc that knows TCP alone, and then tftp is
# what sends a datagram to any port.
busybox_udp() {
	case $(busybox nc --help 2>&1) in
	*'-u'*) echo | bounded_pipe busybox nc -u -w "$WAIT" "$HOST" "$1" ;;
	*) bounded "$WAIT" busybox tftp -g -l /dev/null -r knock "$HOST" "$1" </dev/null ;;
	esac
}

# bounded_pipe is bounded for a command that reads what is piped in: a shell gives a
# command in the background no input but what it is told to.
bounded_pipe() {
	exec 3<&0
	bounded "$AT_MOST" with_input "$@"
	exec 3<&-
}

with_input() { exec "$@" <&3; }

icmp() {
	have ping || bad 'a ping needs the program ping: install it'
	if [ -n "$1" ]; then
		bounded "$WAIT" ping $SIX -c 1 -s "$1" "$HOST" </dev/null
	else
		bounded "$WAIT" ping $SIX -c 1 "$HOST" </dev/null
	fi
}

# unresolved: is the host a name that nothing here knows. What the knocking programs
# say goes nowhere, so that nobody would be told. None of these sends the host a packet; where
# none is here it counts as known.
# shellcheck disable=SC2016
unresolved() {
	case $HOST in
	*:*) return 1 ;;
	*[!0-9.]*) ;;
	*) return 1 ;;
	esac
	if have getent; then
		! getent hosts "$HOST" >/dev/null 2>&1
	elif [ "$PROGRAM" = bash ]; then
		LC_ALL=C bash -c ': <"/dev/udp/$1/9"' knock "$HOST" 2>&1 | grep -q 'Invalid argument'
	elif [ "$PROGRAM" = nmap ]; then
		LC_ALL=C nmap -sL -n "$HOST" 2>&1 </dev/null | grep -q 'Failed to resolve'
	else
		return 1
	fi
}

# number: is it one from $2 to $3, in plain digits
number() {
	case $1 in
	'' | *[!0-9]* | ??????* | 0?*) return 1 ;;
	esac
	[ "$1" -ge "$2" ] && [ "$1" -le "$3" ]
}

# check ends the program unless the argument is a step: all are looked at before the
# first is made.
check() {
	case $1 in
	icmp) return ;;
	*/icmp) number "${1%/icmp}" 0 65507 || bad 'a ping is icmp or 37/icmp, with 0 to 65507 bytes' ;;
	*/tcp | */udp) number "${1%/???}" 1 65535 || bad 'a port is a number from 1 to 65535, as 7000, 7000/tcp or 8500/udp' ;;
	*) number "$1" 1 65535 || bad 'a port is a number from 1 to 65535, as 7000, 7000/tcp or 8500/udp' ;;
	esac
}

knock() {
	case $1 in
	icmp) icmp '' ;;
	*/icmp) icmp "${1%/icmp}" ;;
	*/udp) udp "${1%/udp}" ;;
	*) tcp "${1%/tcp}" ;;
	esac
}

[ $# -ge 1 ] || usage
HOST=$1
shift
case $HOST in
'' | -* | *[!A-Za-z0-9.:%_-]*) bad 'the host must be a name or an address without brackets' ;;
esac
SIX=
case $HOST in
*:*) SIX=-6 ;;
esac
WITH=${KNOCK_WITH:-}
WAIT=${KNOCK_WAIT:-1}
number "$WAIT" 1 60 || bad 'KNOCK_WAIT must be 1 to 60 seconds'
# Programs that count the seconds themselves, from their packet on, get time to start: a
# busy machine would see them ended before it.
AT_MOST=$((WAIT + 3))

# What the script itself holds counts where the command line says nothing.
# shellcheck disable=SC2086
[ $# -ge 1 ] || set -- $STEPS
[ $# -ge 1 ] || usage
for step in "$@"; do check "$step"; done
PROGRAM=$(choose) || exit
if unresolved; then failed "the name $HOST can't be resolved, so nothing was sent: see whether it is spelled right, or give the server's address"; fi

for step in "$@"; do
	knock "$step"
	# So that no packet overtakes the one before; old shells' sleep knows no fraction.
	sleep 0.1 2>/dev/null || sleep 1
done
