package netfilter

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

func be(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// join puts attributes, by pairs of kind and value, one behind the other.
func join(pairs ...any) (b []byte) {
	for i := 0; i < len(pairs); i += 2 {
		b = netlink.Append(b, uint16(pairs[i].(int)), pairs[i+1].([]byte))
	}
	return b
}

func tuple(src, dst netip.AddrPort) []byte {
	port := func(p netip.AddrPort) []byte { return binary.BigEndian.AppendUint16(nil, p.Port()) }
	return join(1, join(1, src.Addr().AsSlice(), 2, dst.Addr().AsSlice()), 2, join(1, []byte{6}, 2, port(src), 3, port(dst)))
}

func connection() []byte {
	inside, outside := netip.MustParseAddrPort("10.0.0.2:50000"), netip.MustParseAddrPort("192.0.2.1:443")
	return join(ctOriginal, tuple(inside, outside), ctReply, tuple(outside, inside), ctStatus, be(0x0e), ctTimeout, be(300),
		ctProtocol, join(1, join(1, []byte{3})), ctCountOriginal, join(1, append(be(0), be(7)...), 2, append(be(1), be(0)...)), ctMark, be(5))
}

func TestParseConnection(t *testing.T) {
	c, err := ParseConnection(2, connection())
	if err != nil {
		t.Fatal(err)
	}
	if c.Original.Src.String() != "10.0.0.2:50000" || c.Reply.Src.String() != "192.0.2.1:443" || c.Original.Protocol != 6 || c.TCPState != 3 ||
		c.Status != 0x0e || c.Timeout != 300 || c.Mark != 5 || c.Original.Packets != 7 || c.Original.Bytes != 1<<32 {
		t.Errorf("%+v", c)
	}
	if _, err := ParseConnection(2, nil); err == nil {
		t.Error("a connection without addresses was taken")
	}
}

func TestExpressionsInWords(t *testing.T) {
	value := func(b ...byte) []byte { return join(1, b) }
	for want, c := range map[string]struct {
		name string
		b    []byte
	}{
		"cmp sreg=8 op=neq data=0a000001":                    {"cmp", join(1, be(8), 2, be(1), 3, value(10, 0, 0, 1))},
		`immediate dreg=0 data=jump "other"`:                 {"immediate", join(1, be(0), 2, join(2, join(1, be(0xfffffffd), 2, []byte("other\x00"))))},
		"meta key=skuid dreg=1":                              {"meta", join(2, be(10), 1, be(1))},
		`log group=1 prefix="a\nb"`:                          {"log", join(1, []byte{0, 1}, 2, []byte("a\nb\x00"))},
		"meta key=200":                                       {"meta", join(2, be(200))},
		"of tomorrow 1=00000001":                             {"of tomorrow", join(1, be(1))},
		"counter bytes=4294967296 packets=1":                 {"counter", join(1, append(be(1), be(0)...), 2, append(be(0), be(1)...))},
		`dynset set="s" expr=[limit 0c00010000000000000000]`: {"dynset", join(1, []byte("s\x00"), 7, join(1, []byte("limit\x00"), 2, []byte{12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}))},
	} {
		if got := expression(c.name, c.b); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := expression("match", join(1, []byte("x\x00"), 3, make([]byte, 9000))); len(got) > maxText+20 {
		t.Errorf("an expression has %d bytes", len(got))
	}
}

func TestChainsOfSeveralDevices(t *testing.T) {
	one := hook(join(1, be(0), 2, be(0xffffffff), 3, []byte("lo\x00")))
	two := hook(join(4, join(1, []byte("eth0\x00"), 1, []byte("eth1\x00"))))
	if len(one.Devices) != 1 || one.Devices[0] != "lo" || one.Priority != -1 || len(two.Devices) != 2 || two.Devices[1] != "eth1" {
		t.Errorf("%+v, %+v", one, two)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add(connection())
	f.Add(join(1, []byte("table\x00"), 2, []byte("set\x00"), 3, join(1, join(1, join(1, be(9)), 7, join(1, []byte("counter\x00"))))))
	f.Add(join(1, []byte("table\x00"), 2, []byte("chain\x00"), 4, join(1, join(1, []byte("cmp\x00"), 2, join(3, join(1, be(1)))))))
	f.Fuzz(func(t *testing.T, b []byte) {
		ParseConnection(2, b)
		ParseElements(1, b)
		for _, l := range lists {
			i, err := l.parse(1, b)
			if err == nil && len(i.Expressions) > maxList {
				t.Errorf("%d expressions", len(i.Expressions))
			}
		}
	})
}
