package sockdiag

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// inetMessage is a connection of TCP over IPv6, with what an old kernel knows
// of it: the first 104 bytes of tcp_info, its RTT 1,500 microseconds.
func inetMessage() []byte {
	b := []byte{10, 1, 2, 3}
	b = binary.BigEndian.AppendUint16(b, 443)
	b = binary.BigEndian.AppendUint16(b, 50000)
	local, remote := netip.MustParseAddr("2001:db8::1").As16(), netip.MustParseAddr("::ffff:192.0.2.1").As16()
	b = append(append(b, local[:]...), remote[:]...)
	b = append(b, words(4, 0x55, 0, 700, 11, 12, 1000, 12345)...)
	info := make([]byte, 104)
	binary.NativeEndian.PutUint32(info[68:], 1500)
	b = netlink.Append(b, inetInfo, info)
	b = netlink.Append(b, inetCongestion, []byte("bbr\x00"))
	b = netlink.Append(b, inetMark, words(9))
	b = netlink.Append(b, inetCgroup, append(words(77), 0, 0, 0, 0))
	return netlink.Append(b, inetULP, netlink.Append(nil, ulpName, []byte("tls\x00")))
}

func TestParseInet(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the message is of a little-endian machine")
	}
	got, err := ParseInet(inetMessage())
	if err != nil {
		t.Fatal(err)
	}
	want := &Inet{State: 1, Timer: 2, Retransmits: 3, TimerMS: 700, Interface: 4, Cookie: 0x55, RecvQ: 11, SendQ: 12, UID: 1000, Inode: 12345,
		Local: netip.MustParseAddrPort("[2001:db8::1]:443"), Remote: netip.MustParseAddrPort("[::ffff:192.0.2.1]:50000"),
		Mark: 9, Cgroup: 77, Congestion: "bbr", ULP: "tls", TCP: &TCPInfo{RTT: 1500}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
}

func TestParseUnixKeepsNamesWhole(t *testing.T) {
	for name, want := range map[string]string{
		"/run/x\x00":          "/run/x",
		"/run/x":              "/run/x",
		"\x00abs\x00tract":    "\x00abs\x00tract",
		"\x00ends in one\x00": "\x00ends in one\x00",
		"":                    "",
	} {
		b := append([]byte{1, 1, 10, 0}, words(5, 6, 0)...)
		b = netlink.Append(netlink.Append(b, unixName, []byte(name)), unixPeer, words(8))
		got, err := ParseUnix(b)
		if err != nil || string(got.Name) != want || got.Inode != 5 || got.Peer != 8 || got.State != 10 || got.UID != nil {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
}

func TestParsersRefuseWhatIsTooShort(t *testing.T) {
	short := bytes.Repeat([]byte{2}, 15)
	for name, parse := range parsers {
		if parse(short) == nil {
			t.Errorf("%s: 15 bytes were taken", name)
		}
	}
	if _, err := ParseInet(append([]byte{7}, make([]byte, 71)...)); err == nil {
		t.Error("an address family that is none was taken")
	}
}

var parsers = map[string]func([]byte) error{
	"inet":    func(b []byte) error { _, err := ParseInet(b); return err },
	"unix":    func(b []byte) error { _, err := ParseUnix(b); return err },
	"netlink": func(b []byte) error { _, err := ParseNetlink(b); return err },
	"packet":  func(b []byte) error { _, err := ParsePacket(b); return err },
	"vsock":   func(b []byte) error { _, err := ParseVsock(b); return err },
}

func FuzzParsers(f *testing.F) {
	f.Add(inetMessage())
	f.Add(netlink.Append(make([]byte, 16), unixName, []byte("\x00name")))
	f.Add(netlink.Append(make([]byte, 16), packetFilter, make([]byte, 16)))
	f.Add(netlink.Append(make([]byte, 28), 1, make([]byte, 4)))
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
