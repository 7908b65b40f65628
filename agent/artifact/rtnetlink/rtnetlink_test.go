package rtnetlink

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

func le(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// multipath is 10.0.0.0/8 of table 1000 by two gateways, of which the second
// has an address of the other family.
func multipath() []byte {
	hop := func(index uint32, kind uint16, gateway []byte) []byte {
		attribute := netlink.Append(nil, kind, gateway)
		b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtNexthop+len(attribute)))
		return append(append(append(b, 0, 4), le(index)...), attribute...)
	}
	b := []byte{unix.AF_INET, 8, 0, 0, 252, 4, 0, 1, 0, 0, 0, 0}
	b = netlink.Append(b, unix.RTA_DST, []byte{10, 0, 0, 0})
	b = netlink.Append(b, unix.RTA_TABLE, le(1000))
	six := netip.MustParseAddr("fe80::1").As16()
	via := append([]byte{unix.AF_INET6, 0}, six[:]...)
	return netlink.Append(b, unix.RTA_MULTIPATH, append(hop(2, unix.RTA_GATEWAY, []byte{192, 0, 2, 1}), hop(3, unix.RTA_VIA, via)...))
}

func TestParseRoute(t *testing.T) {
	r, err := ParseRoute(multipath())
	if err != nil || r.Table != 1000 || r.Dst != netip.MustParsePrefix("10.0.0.0/8") || len(r.Hops) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Hops[0] != (Hop{2, netip.MustParseAddr("192.0.2.1"), 5}) || r.Hops[1] != (Hop{3, netip.MustParseAddr("fe80::1"), 5}) {
		t.Errorf("hops %+v", r.Hops)
	}
}

// link is a veth, watched by two sniffers and one XDP program.
func link() []byte {
	b := append(make([]byte, 4), le(7)...)
	b = append(append(b, le(unix.IFF_UP)...), le(0)...)
	b = netlink.Append(b, unix.IFLA_IFNAME, []byte("veth0\x00"))
	b = netlink.Append(b, unix.IFLA_ADDRESS, []byte{2, 0, 0, 0, 0, 1})
	b = netlink.Append(b, unix.IFLA_PROMISCUITY, le(2))
	b = netlink.Append(b, unix.IFLA_LINK_NETNSID, le(0))
	b = netlink.Append(b, unix.IFLA_LINKINFO, netlink.Append(nil, unix.IFLA_INFO_KIND, []byte("veth\x00")))
	b = netlink.Append(b, unix.IFLA_XDP, netlink.Append(nil, unix.IFLA_XDP_PROG_ID, le(99)))
	b = netlink.Append(b, unix.IFLA_PROP_LIST, netlink.Append(nil, unix.IFLA_ALT_IFNAME, []byte("other\x00")))
	stats := make([]byte, 24) // of a kernel that counts packets and received bytes alone
	binary.NativeEndian.PutUint64(stats[16:], 1<<40)
	return netlink.Append(b, unix.IFLA_STATS64, stats)
}

func TestParseLink(t *testing.T) {
	l, err := ParseLink(link())
	if err != nil {
		t.Fatal(err)
	}
	if l.Index != 7 || l.Name != "veth0" || l.Kind != "veth" || l.Promiscuity != 2 || l.XDP != 99 || l.MAC.String() != "02:00:00:00:00:01" ||
		l.ParentNS == nil || *l.ParentNS != 0 || len(l.AltNames) != 1 || l.AltNames[0] != "other" || l.RxBytes != 1<<40 || l.TxBytes != 0 {
		t.Errorf("%+v", l)
	}
}

func rule() []byte {
	b := append([]byte{unix.AF_INET, 0, 24, 0, 100, 0, 0, 1}, le(unix.FIB_RULE_INVERT)...)
	b = netlink.Append(b, unix.FRA_SRC, []byte{10, 1, 2, 0})
	b = netlink.Append(b, unix.FRA_PRIORITY, le(500))
	b = netlink.Append(b, unix.FRA_UID_RANGE, append(le(33), le(34)...))
	return netlink.Append(b, unix.FRA_FWMARK, le(0x10))
}

func TestParseRule(t *testing.T) {
	r, err := ParseRule(rule())
	if err != nil || r.From != netip.MustParsePrefix("10.1.2.0/24") || r.To.IsValid() || r.Priority != 500 || !r.Invert || r.Table != 100 || r.Mark != 16 || *r.UIDs != [2]uint32{33, 34} {
		t.Errorf("%+v, %v", r, err)
	}
}

var parsers = map[string]func([]byte) error{
	"link":      func(b []byte) error { _, err := ParseLink(b); return err },
	"address":   func(b []byte) error { _, err := ParseAddress(b); return err },
	"route":     func(b []byte) error { _, err := ParseRoute(b); return err },
	"rule":      func(b []byte) error { _, err := ParseRule(b); return err },
	"neighbour": func(b []byte) error { _, err := ParseNeighbour(b); return err },
}

func TestParsersRefuseWhatIsTooShort(t *testing.T) {
	for name, parse := range parsers {
		if parse(make([]byte, 7)) == nil {
			t.Errorf("%s: 7 bytes were taken", name)
		}
	}
}

func FuzzParsers(f *testing.F) {
	f.Add(multipath())
	f.Add(link())
	f.Add(rule())
	f.Add(netlink.Append(make([]byte, 8), unix.IFA_LOCAL, []byte{127, 0, 0, 1}))
	f.Add(netlink.Append(make([]byte, 12), unix.NDA_LLADDR, []byte{1, 2, 3, 4, 5, 6}))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		for _, parse := range parsers {
			parse(b)
		}
		if !bytes.Equal(before, b) {
			t.Error("a parser changed the message")
		}
	})
}
