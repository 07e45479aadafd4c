package later_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAdvice runs each line as it is printed; then nothing is reported any more
// and a real client gets through.
func TestAdvice(t *testing.T) {
	iptables := "*filter\n:INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A INPUT -p ipv6-icmp -j ACCEPT\nCOMMIT\n"
	raw := "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp --dport 1000:1010 -j DROP\nCOMMIT\n"
	for _, f := range []struct {
		name, v4, v6 string
		mark         uint32
		ports        string
		want         []string
	}{
		{"nft", input("drop"), "", 0, "22/tcp", []string{"nft insert rule inet filter input tcp dport 22 accept"}},
		{"nft range", input("accept", "reject"), "", 0, "1000-1010/udp", []string{"nft insert rule inet filter input udp dport 1000-1010 accept"}},
		{"nft mark", marking + input("drop"), "", grantMark, "22/tcp", []string{"nft insert rule inet filter input meta mark and 0x10 == 0x10 accept"}},
		{"iptables", iptables, iptables, 0, "22/tcp", []string{"iptables -I INPUT -p tcp --dport 22 -j ACCEPT", "ip6tables -I INPUT -p tcp --dport 22 -j ACCEPT"}},
		{"iptables range", iptables, iptables, 0, "1000-1010/udp",
			[]string{"iptables -I INPUT -p udp --dport 1000:1010 -j ACCEPT", "ip6tables -I INPUT -p udp --dport 1000:1010 -j ACCEPT"}},
		{"iptables mark", marking, iptables, grantMark, "22/tcp", []string{"ip6tables -I INPUT -m mark --mark 0x10/0x10 -j ACCEPT"}},
		{"iptables raw", raw, raw, grantMark, "1000-1010/udp", []string{
			"iptables -t raw -I PREROUTING -p udp --dport 1000:1010 -j ACCEPT", "ip6tables -t raw -I PREROUTING -p udp --dport 1000:1010 -j ACCEPT"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.serve(22, 1005)
			h.load(f.v4, f.v6)
			if got := h.follow(f.mark, f.ports); !slices.Equal(got, f.want) {
				t.Errorf("advised %q, want %q", got, f.want)
			}
			network, port := "tcp", 22
			if strings.HasSuffix(f.ports, "udp") {
				network, port = "udp", 1005
			}
			for _, addr := range both {
				if !h.greets(network, addr, port) {
					t.Errorf("%s: advice followed, and still no way through", addr)
				}
			}
		})
	}
}

// follow runs the advice on every blocker and fails if one remains.
func (h *host) follow(mark uint32, ports string) []string {
	h.t.Helper()
	var advice []string
	for _, b := range h.later(mark, ports) {
		advice = append(advice, b.Advice)
		h.server.Run("sh", "-c", b.Advice)
	}
	if left := h.later(mark, ports); len(left) > 0 {
		h.t.Errorf("advice followed, and still blocked: %s", summary(left))
	}
	return advice
}

// TestAdviceOfFrontEnds checks as text what ufw and firewalld are told, because
// neither can run in a namespace of a test; what ufw writes into its files is
// loaded for real.
func TestAdviceOfFrontEnds(t *testing.T) {
	for _, f := range []struct {
		name, v4, v6 string
		mark         uint32
		ports        string
		want         []string
	}{
		{"ufw", ufw("", ""), ufw("6", ""), 0, "22/tcp", []string{"ufw allow 22/tcp", "ufw allow 22/tcp"}},
		{"ufw range", ufw("", ""), "", 0, "1000-1010/udp", []string{"ufw allow 1000:1010/udp"}},
		{"firewalld", firewalld(""), "", 0, "22/tcp", []string{"firewall-cmd --permanent --add-port=22/tcp && firewall-cmd --reload"}},
		{"firewalld mark", firewalld(""), "", grantMark, "1000-1010/udp",
			[]string{"firewall-cmd --permanent --add-port=1000-1010/udp && firewall-cmd --reload"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.load(f.v4, f.v6)
			var got []string
			for _, b := range h.later(f.mark, f.ports) {
				got = append(got, b.Advice)
			}
			if !slices.Equal(got, f.want) {
				t.Errorf("advised %q, want %q", got, f.want)
			}
		})
	}
}

func TestAdviceForUFWMark(t *testing.T) {
	h := newHost(t)
	h.serve(22)
	h.load(ufw("", ""), ufw("6", ""))
	h.load(marking, "")
	dir := t.TempDir()
	for _, b := range h.later(grantMark, "22/tcp") {
		version := map[bool]string{true: "6"}[b.IPv6]
		file := filepath.Join(dir, "before"+version+".rules")
		if err := os.WriteFile(file, []byte(ufw(version, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		edit, ok := strings.CutSuffix(strings.Replace(b.Advice, "/etc/ufw", dir, 1), " && ufw reload")
		if !ok {
			t.Errorf("%q does not reload", b.Advice)
		}
		h.server.Run("sh", "-c", edit)
		h.server.Run("sh", "-c", fmt.Sprintf("ip%stables-restore %s", version, file))
	}
	if left := h.later(grantMark, "22/tcp"); len(left) > 0 {
		t.Errorf("still blocked: %s", summary(left))
	}
	for _, addr := range both {
		if !h.greets("tcp", addr, 22) {
			t.Errorf("%s: no way through", addr)
		}
	}
}
