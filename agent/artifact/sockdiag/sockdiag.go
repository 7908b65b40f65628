// Package sockdiag lists the sockets of a network namespace as the kernel's
// sock_diag tells them, with more than /proc/net does: what TCP knows of a
// connection, the peer of a unix socket, exact names, filters.
//
// Sources: linux/uapi/linux/{sock_diag,inet_diag,unix_diag,netlink_diag,
// packet_diag,vm_sockets_diag}.h, sock_diag(7).
package sockdiag

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

const (
	byFamily  = 20 // SOCK_DIAG_BY_FAMILY
	allStates = 0xffffffff
)

// head is where every answer's attributes begin, and what it says of itself.
func head(b []byte, kind string, size int) (fixed, attributes []byte, err error) {
	if len(b) < size {
		return nil, nil, fmt.Errorf("cannot read %s socket: %d bytes, want %d", kind, len(b), size)
	}
	return b[:size], b[size:], nil
}

// dump asks, and parses what comes. A message that cannot be read goes to odd,
// and the next is read.
func dump[S any](ctx context.Context, c *netlink.Conn, request []byte, parse func([]byte) (*S, error), do func(*S) error, odd func(error)) error {
	return c.Dump(ctx, byFamily, request, func(m netlink.Message) error {
		s, err := parse(m.Data)
		if err != nil {
			odd(err)
			return nil
		}
		return do(s)
	})
}

// word and its kin read numbers of this machine's order.
func word(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func quad(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
func words(n ...uint32) (b []byte) {
	for _, v := range n {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// Inet is an internet socket.
type Inet struct {
	State           uint8 // of linux/net/tcp_states.h
	Timer           uint8 // 0 off, 1 retransmit, 2 keepalive, 3 TIME_WAIT, 4 zero window probe
	Retransmits     uint8
	TimerMS         uint32
	Local, Remote   netip.AddrPort
	Interface       uint32 // the one it is bound to, or 0
	Cookie          uint64 // names the socket while the host runs, also where it has no inode
	RecvQ, SendQ    uint32
	UID, Inode      uint32
	Mark            uint32 // SO_MARK; 0 without CAP_NET_ADMIN
	Cgroup          uint64 // inode of its control group, version 2
	Congestion, ULP string
	TCP             *TCPInfo // nil where the protocol has none
}

// TCPInfo is part of struct tcp_info of linux/tcp.h. What an older kernel does
// not tell is 0.
type TCPInfo struct {
	RTO, RTT, RTTVar, MinRTT     uint32 // microseconds
	SinceSent, SinceReceived     uint32 // milliseconds since data last went each way
	MTU, Window, TotalRetransmit uint32 // Window is in segments
	SegsOut, SegsIn              uint32
	Acked, Received, Sent        uint64 // bytes
}

// Protocols of linux/in.h that Inets takes.
const (
	TCP     = 6
	UDP     = 17
	DCCP    = 33
	SCTP    = 132
	UDPLite = 136
	Raw     = 255
	MPTCP   = 262
)

// Inets lists the sockets of an address family, AF_INET or AF_INET6, and a
// protocol. The kernel's unix.ENOENT says that it has no list of these.
func Inets(ctx context.Context, c *netlink.Conn, family uint8, protocol uint32, do func(*Inet) error, odd func(error)) error {
	const info, congestion = 1 << (inetInfo - 1), 1 << (inetCongestion - 1)
	request := append([]byte{family, byte(protocol), info | congestion, 0}, words(allStates)...)
	request = append(request, make([]byte, 48)...) // any ends, any interface
	if protocol > 255 {
		request = netlink.Append(request, requestProtocol, words(protocol))
	}
	return dump(ctx, c, request, ParseInet, do, odd)
}

const (
	requestProtocol = 3 // INET_DIAG_REQ_PROTOCOL

	// Attributes of an answer, INET_DIAG_….
	inetInfo       = 2
	inetCongestion = 4
	inetMark       = 15
	inetULP        = 19
	inetCgroup     = 21
	ulpName        = 1
)

// ParseInet reads a struct inet_diag_msg and what follows.
func ParseInet(b []byte) (*Inet, error) {
	fixed, attributes, err := head(b, "internet", 72)
	if err != nil {
		return nil, err
	}
	s := &Inet{State: fixed[1], Timer: fixed[2], Retransmits: fixed[3], Interface: word(fixed[40:]), Cookie: quad(fixed[44:]),
		TimerMS: word(fixed[52:]), RecvQ: word(fixed[56:]), SendQ: word(fixed[60:]), UID: word(fixed[64:]), Inode: word(fixed[68:])}
	if s.Local, err = end(fixed[0], fixed[4:], fixed[8:]); err != nil {
		return nil, err
	}
	if s.Remote, err = end(fixed[0], fixed[6:], fixed[24:]); err != nil {
		return nil, err
	}
	for kind, value := range netlink.Attributes(attributes) {
		switch kind {
		case inetInfo:
			s.TCP = parseTCP(value)
		case inetCongestion:
			s.Congestion = name(value)
		case inetMark:
			s.Mark = uint32(netlink.Uint(value))
		case inetCgroup:
			s.Cgroup = netlink.Uint(value)
		case inetULP:
			for kind, value := range netlink.Attributes(value) {
				if kind == ulpName {
					s.ULP = name(value)
				}
			}
		}
	}
	return s, nil
}

// name reads the kernel's name of a part of it, at most 32 bytes.
func name(b []byte) string { return netlink.String(b[:min(len(b), 32)]) }

func end(family uint8, port, address []byte) (netip.AddrPort, error) {
	const inet, inet6 = 2, 10
	number := binary.BigEndian.Uint16(port)
	switch family {
	case inet:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(address)), number), nil
	case inet6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(address)), number), nil
	}
	return netip.AddrPort{}, fmt.Errorf("cannot read internet socket: address family %d, want 2 or 10", family)
}

// parseTCP reads as much of a struct tcp_info as the kernel gave; SCTP's is
// another one, and longer by far.
func parseTCP(b []byte) *TCPInfo {
	const least, most = 104, 384
	if len(b) < least || len(b) > most {
		return nil
	}
	var whole [most]byte
	copy(whole[:], b)
	at := func(offset int) uint32 { return word(whole[offset:]) }
	return &TCPInfo{
		RTO: at(8), SinceSent: at(44), SinceReceived: at(52), MTU: at(60), RTT: at(68), RTTVar: at(72), Window: at(80),
		TotalRetransmit: at(100), Acked: quad(whole[120:]), Received: quad(whole[128:]), SegsOut: at(136), SegsIn: at(140),
		MinRTT: at(148), Sent: quad(whole[200:]),
	}
}
