package knockd

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"pgregory.net/rapid"
)

// portsOf reads "22/tcp 80-90/udp".
func portsOf(t testing.TB, text string) (out []config.PortRange) {
	t.Helper()
	for word := range strings.FieldsSeq(text) {
		p, err := config.ParsePortRange(word)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

const four, six, both = "4", "6", "46"

// recognised is commands as people write them. The families are those whose
// addresses the program takes.
var recognised = []struct {
	text, ports, families string
	closes                bool
	lasts                 time.Duration
}{
	{text: "/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "/sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four, closes: true},
	{text: "/usr/sbin/ip6tables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: six},
	{text: "/usr/sbin/ip6tables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: six, closes: true},
	{text: "iptables -A INPUT -s %IP% --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "/sbin/iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "/sbin/iptables -I INPUT 1 -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "/usr/sbin/iptables -w -I INPUT -s %IP% -p udp --dport 1194 -j ACCEPT", ports: "1194/udp", families: four},
	{text: "/usr/sbin/ip6tables -w 5 -I INPUT -s %IP% -p udp --dport 1194 -j ACCEPT", ports: "1194/udp", families: six},
	{text: "/sbin/iptables -A INPUT -p tcp -s %IP% -m tcp --dport 22 -m comment --comment 'opened by knockd' -j ACCEPT", ports: "22/tcp", families: four},
	{text: "/sbin/iptables -I INPUT -p tcp -s %IP%/32 --dport ssh -j ACCEPT", ports: "22/tcp", families: four},
	{text: "/sbin/ip6tables -I INPUT -p tcp -s %IP%/128 --dport ssh -j ACCEPT", ports: "22/tcp", families: six},
	{text: "iptables --insert INPUT --source %IP% --protocol tcp --destination-port 22 --jump ACCEPT", ports: "22/tcp", families: four},
	{text: "iptables --append INPUT --src %IP% --proto tcp --dport=22 --jump ACCEPT", ports: "22/tcp", families: four},
	{text: "iptables --delete INPUT --source %IP% -p TCP --dport 22 -j ACCEPT", ports: "22/tcp", families: four, closes: true},
	{text: "iptables -A INPUT -s %IP% -p tcp -m multiport --dports 80,443,22 -j ACCEPT", ports: "22/tcp 80/tcp 443/tcp", families: four},
	{text: "ip6tables -A INPUT -s %IP% -p tcp -m multiport --dports 80,6000:6010 -j ACCEPT", ports: "80/tcp 6000-6010/tcp", families: six},
	{text: "iptables -A INPUT -s %IP% -p udp --dport 60000:61000 -j ACCEPT", ports: "60000-61000/udp", families: four},
	{text: "iptables -A INPUT -s %IP% -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "ip6tables -A INPUT -m conntrack --ctstate NEW,ESTABLISHED -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: six},
	{text: "iptables -t filter -A INPUT -s %IP% -p tcp --syn --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "sudo /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "/usr/bin/sudo -n iptables-nft -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "iptables -I ufw-user-input -s %IP% -p tcp --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "iptables  -A\tINPUT -s \"%IP%\" -p 'tcp' --dport 22 -j ACCEPT", ports: "22/tcp", families: four},
	{text: "nft add rule inet filter input ip saddr %IP% tcp dport 22 accept", ports: "22/tcp", families: four},
	{text: "/usr/sbin/nft insert rule inet filter input ip6 saddr %IP% tcp dport 22 accept", ports: "22/tcp", families: six},
	{text: "nft 'add rule ip filter INPUT ip saddr %IP% tcp dport {22,80} ct state new counter accept'", ports: "22/tcp 80/tcp", families: four},
	{text: "nft add rule ip6 filter input ip6 saddr %IP% udp dport { 53, 5000-5010 } accept", ports: "53/udp 5000-5010/udp", families: six},
	{text: "ufw allow from %IP% to any port 22 proto tcp", ports: "22/tcp", families: both},
	{text: "/usr/sbin/ufw allow from %IP% to any port 22", ports: "22/tcp 22/udp", families: both},
	{text: "ufw insert 1 allow from %IP% to any port 22 proto tcp", ports: "22/tcp", families: both},
	{text: "ufw insert 1 allow proto tcp from %IP% to any port 80,443", ports: "80/tcp 443/tcp", families: both},
	{text: "ufw delete allow from %IP% to any port 22 proto tcp", ports: "22/tcp", families: both, closes: true},
	{text: "ufw --force delete allow in from %IP% to any port 22 proto tcp comment 'by knock'", ports: "22/tcp", families: both, closes: true},
	{text: "ufw prepend allow from %IP% to any port 6000:6010 proto udp", ports: "6000-6010/udp", families: both},
	{text: `firewall-cmd --add-rich-rule='rule family="ipv4" source address="%IP%" port port="22" protocol="tcp" accept'`, ports: "22/tcp", families: four},
	{text: `/usr/bin/firewall-cmd --add-rich-rule='rule family="ipv6" source address="%IP%" port port="22" protocol="tcp" accept'`, ports: "22/tcp", families: six},
	{text: `firewall-cmd --zone=public --add-rich-rule 'rule family="ipv4" source address="%IP%" port protocol="tcp" port="22" accept' --timeout=30`, ports: "22/tcp", families: four, lasts: 30 * time.Second},
	{text: `firewall-cmd -q --timeout 5m --add-rich-rule="rule family='ipv6' source address='%IP%' port port='6000-6010' protocol='udp' accept"`, ports: "6000-6010/udp", families: six, lasts: 5 * time.Minute},
	{text: `firewall-cmd --remove-rich-rule='rule family="ipv4" source address="%IP%/32" service name="ssh" accept'`, ports: "22/tcp", families: four, closes: true},
	{text: "/usr/local/sbin/knock_add -i -c INPUT -p tcp -d 443 -f %IP%", ports: "443/tcp", families: four},
	{text: "knock_helper_ipt.sh -a -f %IP% -d 22", ports: "22/tcp", families: four},
	{text: "/usr/local/sbin/knock_add --delete --srcaddr %IP% --dstport 1194 --proto udp", ports: "1194/udp", families: four, closes: true},
}

func TestRecognise(t *testing.T) {
	for _, test := range recognised {
		got, why := recognise(test.text)
		families := map[bool]string{true: four}[got.ipv4] + map[bool]string{true: six}[got.ipv6]
		if why != "" || !slices.Equal(got.ports, portsOf(t, test.ports)) || families != test.families || got.closes != test.closes || got.lasts != test.lasts {
			t.Errorf("%s\n\t%+v, %q", test.text, got, why)
		}
	}
}

// TestShellWords: what is split here is split by a shell in the same way.
func TestShellWords(t *testing.T) {
	pieces := rapid.SampledFrom([]string{"a", "%IP%", " ", "\t", "'", `"`, "-x=1", "{", "}", ",", "!", "$", "`", `\`, "|", ";", "*", "#", "~", "é", "–", "''", `"'"`, ":/", "\r", "="})
	split := 0
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(pieces, 0, 12).Draw(t, "pieces"), "")
		words, why := shellWords(text)
		if why != "" {
			return
		}
		split++
		out, err := exec.Command("/bin/sh", "-c", `printf '<%s>\n' first `+text).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", text, err, out)
		}
		want := "<first>\n"
		for _, w := range words {
			want += "<" + w + ">\n"
		}
		if string(out) != want {
			t.Errorf("%q: the shell makes %q of it, not %q", text, out, want)
		}
	})
	if split < 10 {
		t.Errorf("only %d texts were split", split)
	}
}

// TestUnrecognised is commands that do more or less than a grant. Nearly every one is
// a recognised one with one thing changed.
func TestUnrecognised(t *testing.T) {
	for _, test := range []struct{ text, why string }{
		{"", "%IP%"},
		{"/sbin/iptables -A INPUT -p tcp --dport 22 -j ACCEPT", "%IP%"},
		{"/sbin/iptables -A INPUT -s %ip% -p tcp --dport 22 -j ACCEPT", "%IP%"},
		{"/sbin/iptables -A INPUT -s 192.0.2.1 -p tcp --dport 22 -j ACCEPT -m comment --comment %IP%", "source"},
		{"/sbin/iptables -A INPUT -s %IP%/24 -p tcp --dport 22 -j ACCEPT", "source"},
		{"/sbin/iptables -A INPUT -s %IP%/128 -p tcp --dport 22 -j ACCEPT", "source"},
		{"/sbin/ip6tables -A INPUT -s %IP%/32 -p tcp --dport 22 -j ACCEPT", "source"},
		{"/sbin/iptables -A INPUT -s %IP%,192.0.2.1 -p tcp --dport 22 -j ACCEPT", "source"},
		{"/sbin/iptables -A INPUT ! -s %IP% -p tcp --dport 22 -j ACCEPT", `"!"`},
		{"/sbin/iptables -A INPUT -s %IP% -j ACCEPT", "no port"},
		{"/sbin/ip6tables -A INPUT -s %IP% -p tcp --syn -j ACCEPT", "no port"},
		{"/sbin/iptables -A INPUT -i eth0 -s %IP% -p tcp --dport 22 -j ACCEPT", `"-i"`},
		{"/sbin/ip6tables -A INPUT -d 2001:db8::1 -s %IP% -p tcp --dport 22 -j ACCEPT", `"-d"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --sport 22 -j ACCEPT", `"--sport"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j DROP", "ACCEPT"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j LOG", "ACCEPT"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22", "ACCEPT"},
		{"/sbin/iptables -A FORWARD -s %IP% -p tcp --dport 22 -j ACCEPT", "FORWARD"},
		{"/sbin/ip6tables -A SSHKNOCK -s %IP% -p tcp --dport 22 -j ACCEPT", "SSHKNOCK"},
		{"/sbin/iptables -t nat -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "nat"},
		{"/sbin/iptables -D INPUT 1 -s %IP% -p tcp --dport 22 -j ACCEPT", `"1"`},
		{"/sbin/iptables -C INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", `"-C"`},
		{"/sbin/iptables -A INPUT -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "one rule"},
		{"/sbin/iptables -A INPUT -s %IP% -s %IP% -p tcp --dport 22 -j ACCEPT", `"-s"`},
		{"/sbin/iptables -A INPUT -s %IP% --protocol=tcp --dport 22 -j ACCEPT", `"--protocol=tcp"`},
		{"/sbin/iptables -A INPUT --src=%IP% -p tcp --dport 22 -j ACCEPT", `"--src=%IP%"`},
		{"/sbin/iptables -A INPUT -s %IP% --match=tcp -p tcp --dport 22 -j ACCEPT", `"--match=tcp"`},
		{"/sbin/iptables -A INPUT -s %IP% -p icmp --dport 22 -j ACCEPT", `"icmp"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 0:22 -j ACCEPT", `"0:22"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 1:65535 -j ACCEPT", "65535 ports"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22,80 -j ACCEPT", "ports in this way"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dports 22,80 -j ACCEPT", "-m multiport"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp -m limit --limit 1/s --dport 22 -j ACCEPT", `"--limit"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp -m recent --dport 22 -j ACCEPT", `"-m recent"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp -m udp --dport 22 -j ACCEPT", `"-m udp"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp -m state --state ESTABLISHED --dport 22 -j ACCEPT", `"ESTABLISHED"`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp –dport 22 -j ACCEPT", `because of "–dport" (a typographic dash)`},
		{"/sbin/ip6tables -A INPUT -s %IP% -p tcp --dport “22” -j ACCEPT", `because of "“22”" (a typographic quote)`},
		{"»/sbin/iptables« -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", `because of "»/sbin/iptables«" (a typographic quote)`},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT && logger open", "shell"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT; sleep 10", "shell"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT | tee /log", "shell"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport $PORT -j ACCEPT", "shell"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport \"`cat /port`\" -j ACCEPT", "shell"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT # ssh", "shell"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport '22 -j ACCEPT", "quote"},
		{"/sbin/iptables -A INPUT -s %IP% -p tcp --dport", "lacks"},
		{"/root/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "/root/iptables"},
		{"LANG=C iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "LANG=C"},
		{"sudo -u root iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", `"-u"`},
		{"/etc/init.d/ssh start %IP%", "no firewall command"},
		{"ipset add allowed %IP%", "set"},
		{"nft add element inet filter allowed { %IP% }", "set"},
		{"nft add element inet filter allowed { %IP% . 22 timeout 30s }", "set"},
		{"nft delete rule inet filter input handle 5 # %IP%", "shell"},
		{"nft delete rule inet filter input ip saddr %IP% tcp dport 22 accept", "number"},
		{"nft add rule inet filter forward ip saddr %IP% tcp dport 22 accept", "input"},
		{"nft add rule inet filter input iif eth0 ip saddr %IP% tcp dport 22 accept", `"iif"`},
		{"nft add rule inet filter input ip saddr %IP%/24 tcp dport 22 accept", "makes it more or less"},
		{"nft add rule inet filter input ip saddr %IP% accept", "no port"},
		{"nft add rule inet filter input ip saddr %IP% tcp dport 22 drop", `"drop"`},
		{"nft add rule ip filter input ip6 saddr %IP% tcp dport 22 accept", "family"},
		{"nft 'add rule inet filter input ip saddr %IP% tcp dport 22 accept; flush ruleset'", "more than one"},
		{"nft add rule inet filter input ip saddr %IP% tcp dport {22,80} accept", "braces"},
		{"ufw allow from %IP%", "to any port"},
		{"ufw allow from %IP% port 22", `"port"`},
		{"ufw allow from %IP% to 192.0.2.1 port 22", "to any port"},
		{"ufw allow from %IP% to any port 80,443", "proto"},
		{"ufw allow from %IP% to any app OpenSSH", `"app"`},
		{"ufw allow in on eth0 from %IP% to any port 22", `"on"`},
		{"ufw deny from %IP% to any port 22", "allow"},
		{"ufw limit from %IP% to any port 22", "allow"},
		{"ufw route allow from %IP% to any port 22", "allow"},
		{"ufw allow 22 # %IP%", "shell"},
		{"firewall-cmd --add-source=%IP%", `"--add-source"`},
		{`firewall-cmd --permanent --add-rich-rule='rule family="ipv4" source address="%IP%" port port="22" protocol="tcp" accept'`, "--permanent"},
		{`firewall-cmd --zone=internal --add-rich-rule='rule family="ipv4" source address="%IP%" port port="22" protocol="tcp" accept'`, "zone"},
		{`firewall-cmd --add-rich-rule='rule family="ipv4" source NOT address="%IP%" port port="22" protocol="tcp" accept'`, "rich rule"},
		{`firewall-cmd --add-rich-rule='rule family="ipv6" source address="%IP%/32" port port="22" protocol="tcp" accept'`, "source"},
		{`firewall-cmd --add-rich-rule='rule family="ipv4" source address="%IP%" port port="22" protocol="tcp" log accept'`, "rich rule"},
		{`firewall-cmd --add-rich-rule='rule family="ipv4" source address="%IP%" port port="22" protocol="tcp" reject'`, "rich rule"},
		{`firewall-cmd --timeout=forever --add-rich-rule='rule family="ipv4" source address="%IP%" port port="22" protocol="tcp" accept'`, "timeout"},
		{"knock_add -i -d 443 -f %IP% -t", `"-t"`},
		{"knock_add -d 443 -f %IP%", "-a, -i nor -x"},
		{"knock_add -a -c FORWARD -d 443 -f %IP%", "FORWARD"},
		{"knock_add -a -d 443 -f %IP% -m'x;reboot'", "-m"},
	} {
		if got, why := recognise(test.text); why == "" || !strings.Contains(why, test.why) {
			t.Errorf("%s\n\t%+v, %q, want %q", test.text, got, why, test.why)
		}
	}
}

// FuzzRecognise: nothing without %IP% is recognised, and what is recognised names
// ports that a service can have.
func FuzzRecognise(f *testing.F) {
	for _, text := range commandTexts {
		f.Add(text)
	}
	f.Add("nft add rule ip6 filter input ip6 saddr %IP% udp dport { 53, 5000-5010 } accept")
	f.Add("knock_add -i -c INPUT -p tcp -d 443 -f %IP%")
	f.Add("ufw --force delete allow in from %IP% to any port 22 proto tcp comment 'by knock'")
	f.Fuzz(func(t *testing.T, text string) {
		rule, why := recognise(text)
		if why != "" {
			if len(rule.ports) > 0 {
				t.Errorf("%q: refused for %q, and yet a rule", text, why)
			}
			return
		}
		if !strings.Contains(text, "%IP%") || len(rule.ports) == 0 || !rule.ipv4 && !rule.ipv6 {
			t.Errorf("%q: recognised as %+v", text, rule)
		}
		toml := fmt.Sprintf("[service.x]\nports = [%s]\n", spelled(rule.ports, `"`))
		if _, err := config.Parse("x", []byte(toml)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}

// door is a Door with commands; "-" stands for none.
func door(start, stop, start6, stop6 string, after time.Duration) Door {
	d := Door{Name: "d", Start: start, Stop: stop, CmdTimeout: after}
	if start6 != "-" {
		d.Start6 = &start6
	}
	if stop6 != "-" {
		d.Stop6 = &stop6
	}
	return d
}

// TestNativeDoor is what one door by itself can be.
func TestNativeDoor(t *testing.T) {
	const (
		open4, close4 = "iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"
		open6, close6 = "ip6tables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "ip6tables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"
		web6          = "ip6tables -A INPUT -s %IP% -p tcp --dport 80 -j ACCEPT"
		webClose      = "iptables -D INPUT -s %IP% -p tcp --dport 80 -j ACCEPT"
		ufwOpen       = "ufw allow from %IP% to any port 22 proto tcp"
		nftOpen       = "nft add rule inet filter input ip saddr %IP% tcp dport 22 accept"
		rich          = "firewall-cmd --timeout=30 --add-rich-rule='rule family=ipv4 source address=%IP% port port=22 protocol=tcp accept'"
	)
	for _, test := range []struct {
		name                       string
		start, stop, start6, stop6 string
		after, openFor             time.Duration
		why                        string
	}{
		{"open", open4, "", "-", "-", 10, time.Hour, ""},
		{"open and stop", open4, close4, "-", "-", 10, 10 * time.Second, ""},
		{"both families", open4, close4, open6, close6, 10, 10 * time.Second, ""},
		{"the stop of IPv4 for both", open4, close4, open6, "-", 10, 10 * time.Second, ""},
		{"one program for both", ufwOpen, close4, ufwOpen, close6, 10, 10 * time.Second, ""},
		{"an nft rule", nftOpen, "", "-", "-", 10, time.Hour, ""},
		{"its own end", rich, "", "-", "-", 10, 30 * time.Second, ""},
		{"two ends", rich, close4, "-", "-", 60, 30 * time.Second, ""},
		{"no command", "", "", "-", "-", 10, 0, "no command"},
		{"IPv6 alone", "", "", open6, "-", 10, 0, "start_command is empty"},
		{"nothing over IPv6", open4, close4, "", "-", 10, 0, "start_command_6 is empty"},
		{"never closed over IPv6", open4, close4, open6, "", 10, 0, "stop_command_6 is empty"},
		{"closed over IPv6 only", open4, "", open6, close6, 10, 0, "no stop_command"},
		{"other port over IPv6", open4, "", web6, "-", 10, 0, "something else"},
		{"wrong program for IPv6", open4, "", open4, "-", 10, 0, "start_command_6: this takes no IPv6"},
		{"wrong program for IPv4", open6, "", "-", "-", 10, 0, "takes no IPv4"},
		{"another port is closed", open4, webClose, "-", "-", 10, 0, "just the ports"},
		{"opened twice", open4, open4, "-", "-", 10, 0, "just the ports"},
		{"a script stops it", open4, "/bin/x %IP%", "-", "-", 10, 0, "stop_command: "},
		{"nft deletes by number", nftOpen, "nft delete rule inet filter input ip saddr %IP% tcp dport 22 accept", "-", "-", 10, 0, "number"},
		{"a script starts it", "/bin/x %IP%", close4, "-", "-", 10, 0, "start_command: "},
		{"closed for a while", close4, open4, "-", "-", 10, 0, "taken back"},
		{"no time", open4, close4, "-", "-", 0, 0, "1s to 720h"},
		{"too long", open4, close4, "-", "-", 3000000, 0, "1s to 720h"},
		{"for 136 years", open4, close4, "-", "-", -1, 0, "1s to 720h"},
	} {
		f := &File{Doors: []Door{door(test.start, test.stop, test.start6, test.stop6, test.after*time.Second)}}
		got := f.Natives()[0]
		ok := got.Why == "" && test.why == "" && got.OpenFor == test.openFor && slices.Equal(got.Ports, portsOf(t, "22/tcp"))
		if !ok && (test.why == "" || !strings.Contains(got.Why, test.why)) {
			t.Errorf("%s: %+v, want %q", test.name, got, test.why)
		}
		if _, is := f.natives()[0]; is != (test.why == "") {
			t.Errorf("%s: natives says %v", test.name, is)
		}
	}
}

// TestNativeTogether is about doors that have ports in common: a port that our table
// hides can't be opened by a command any more, so these are grants together or not.
func TestNativeTogether(t *testing.T) {
	open := func(port string) string { return "iptables -A INPUT -s %IP% -p tcp --dport " + port + " -j ACCEPT" }
	closeIt := func(port string) string { return "ip6tables -D INPUT -s %IP% -p tcp --dport " + port + " -j ACCEPT" }
	shut := func(port string) string { return strings.Replace(open(port), "-A", "-D", 1) }
	timed := func(port string, s time.Duration) Door { return door(open(port), shut(port), "-", "-", s*time.Second) }
	plain := func(start string) Door { return door(start, "", "-", "-", 10*time.Second) }
	for _, test := range []struct {
		name  string
		doors []Door
		want  string // o: opens, c: closes, -: keeps its command
	}{
		{"a pair", []Door{plain(open("22")), plain(shut("22"))}, "oc"},
		{"closed first", []Door{plain(shut("22")), plain(open("22"))}, "co"},
		{"nobody opens", []Door{plain(shut("22")), plain(open("23"))}, "-o"},
		{"a close of IPv6 only", []Door{plain(open("22")), plain(closeIt("22"))}, "--"},
		{"other ports", []Door{plain(open("22")), timed("23", 5)}, "oo"},
		{"the same port and time", []Door{timed("22", 5), timed("22", 5)}, "oo"},
		{"the same port, another time", []Door{timed("22", 5), timed("22", 6), plain(shut("22")), timed("80", 9)}, "---o"},
		{"a range around it", []Door{plain(open("22")), plain(open("20:25")), plain(open("26"))}, "--o"},
		{"a script beside it", []Door{plain(open("22")), plain("/usr/local/bin/open %IP% 22")}, "o-"},
		{"a firewall command beside it", []Door{plain(open("22")), plain("iptables -A INPUT -i eth0 -s %IP% -p tcp --dport 22 -j ACCEPT"), plain(open("80"))}, "--o"},
		{"a named port", []Door{plain(open("22")), plain("ip6tables -A X -s %IP% -p tcp --dport ssh -j ACCEPT"), plain(open("81"))}, "--o"},
		{"a range in what is not understood", []Door{plain(open("22")), plain("iptables -A X -s %IP% -p tcp --dport 20:30 -j ACCEPT"), plain(open("81"))}, "--o"},
		{"all ports for some", []Door{plain(open("22")), plain("iptables -A INPUT -s %IP% -j ACCEPT")}, "--"},
		{"a set", []Door{plain(open("22")), plain("ipset add allowed %IP%")}, "--"},
		{"a stop that is not understood", []Door{plain(open("22")), door("/bin/x", "iptables -D INPUT 1 # port 22 %IP%", "-", "-", time.Second)}, "--"},
	} {
		f := &File{Doors: test.doors}
		got := ""
		for _, n := range f.Natives() {
			switch {
			case n.Why != "":
				got += "-"
			case n.Closes:
				got += "c"
			default:
				got += "o"
			}
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s: %+v", test.name, got, test.want, f.Natives())
		}
	}
}

// TestNativeNote: the manual's own example is refused by iptables, which a person
// should learn.
func TestNativeNote(t *testing.T) {
	f := &File{Doors: []Door{door("iptables -A INPUT -s %IP% --dport 22 -j ACCEPT", "", "-", "-", 0)}}
	if n := f.Natives()[0]; n.Why != "" || !strings.Contains(n.Note, "without -p") {
		t.Errorf("%+v", n)
	}
}

// BenchmarkNatives is the time that a file of 1,000 doors takes, of which each other
// one has a command that is not understood.
func BenchmarkNatives(b *testing.B) {
	f := &File{}
	for i := range 1000 {
		start := fmt.Sprintf("iptables -A INPUT -s %%IP%% -p tcp --dport %d -j ACCEPT", i+1)
		if i%2 == 1 {
			start += " -i eth0"
		}
		f.Doors = append(f.Doors, door(start, "", "-", "-", 0))
	}
	for b.Loop() {
		f.Natives()
	}
}
