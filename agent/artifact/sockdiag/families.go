package sockdiag

import (
	"context"
	"encoding/binary"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// Address families of linux/socket.h.
const (
	familyUnix    = 1
	familyNetlink = 16
	familyPacket  = 17
	familyVsock   = 40
)

// Unix is a unix socket.
type Unix struct {
	Type  uint8 // SOCK_…
	State uint8 // as of TCP: 1 connected, 7 not, 10 listening
	Inode uint32
	Peer  uint32 // inode of the other end, or 0
	// Name is as bind(2) got it, without the NUL that ends a path; one that
	// begins with a NUL is in the abstract name space.
	Name []byte
	// FileInode and FileDevice are those of the file that it is bound to; the
	// device as the kernel has it, 12 bits major and 20 minor.
	FileInode, FileDevice uint32
	RecvQ, SendQ          uint32 // bytes; of a listening one, connections that wait, and may
	UID                   *uint32
	Shutdown              uint8 // 1 reads no more, 2 writes no more
	Cookie                uint64
}

// Attributes of a unix socket, UNIX_DIAG_….
const (
	unixName = iota
	unixVFS
	unixPeer
	unixIcons
	unixQueues
	unixMemory
	unixShutdown
	unixUID
)

// Unixes lists the unix sockets.
func Unixes(ctx context.Context, c *netlink.Conn, do func(*Unix) error, odd func(error)) error {
	const show = 1<<unixName | 1<<unixVFS | 1<<unixPeer | 1<<unixQueues | 1<<6 // UDIAG_SHOW_UID
	request := append([]byte{familyUnix, 0, 0, 0}, words(allStates, 0, show, 0, 0)...)
	return dump(ctx, c, request, ParseUnix, do, odd)
}

// ParseUnix reads a struct unix_diag_msg and what follows.
func ParseUnix(b []byte) (*Unix, error) {
	fixed, attributes, err := head(b, "unix", 16)
	if err != nil {
		return nil, err
	}
	s := &Unix{Type: fixed[1], State: fixed[2], Inode: word(fixed[4:]), Cookie: quad(fixed[8:])}
	for kind, value := range netlink.Attributes(attributes) {
		switch {
		case kind == unixName && len(value) > 0:
			s.Name = append([]byte(nil), value...)
			if n := len(value) - 1; value[0] != 0 && value[n] == 0 {
				s.Name = s.Name[:n]
			}
		case kind == unixVFS && len(value) >= 8:
			s.FileInode, s.FileDevice = word(value), word(value[4:])
		case kind == unixPeer:
			s.Peer = uint32(netlink.Uint(value))
		case kind == unixQueues && len(value) >= 8:
			s.RecvQ, s.SendQ = word(value), word(value[4:])
		case kind == unixShutdown && len(value) == 1:
			s.Shutdown = value[0]
		case kind == unixUID && len(value) == 4:
			uid := word(value)
			s.UID = &uid
		}
	}
	return s, nil
}

// Netlink is a netlink socket.
type Netlink struct {
	Type, Protocol, State uint8
	PortID, Peer          uint32
	Inode                 uint32
	Groups                []byte // a bit for each multicast group it is in, in words of this machine
	Cookie                uint64
}

// Netlinks lists the netlink sockets of all protocols.
func Netlinks(ctx context.Context, c *netlink.Conn, do func(*Netlink) error, odd func(error)) error {
	const allProtocols, showGroups = 0xff, 2
	request := append([]byte{familyNetlink, allProtocols, 0, 0}, words(0, showGroups, 0, 0)...)
	return dump(ctx, c, request, ParseNetlink, do, odd)
}

// ParseNetlink reads a struct netlink_diag_msg and what follows.
func ParseNetlink(b []byte) (*Netlink, error) {
	const groups = 1 // NETLINK_DIAG_GROUPS
	fixed, attributes, err := head(b, "netlink", 28)
	if err != nil {
		return nil, err
	}
	s := &Netlink{Type: fixed[1], Protocol: fixed[2], State: fixed[3], PortID: word(fixed[4:]), Peer: word(fixed[8:]),
		Inode: word(fixed[16:]), Cookie: quad(fixed[20:])}
	for kind, value := range netlink.Attributes(attributes) {
		if kind == groups {
			s.Groups = append([]byte(nil), value...)
		}
	}
	return s, nil
}

// Packet is a packet socket: one that takes frames from an interface.
type Packet struct {
	Type      uint8
	Protocol  uint16 // EtherType
	Inode     uint32
	Interface uint32 // 0 is every one
	UID       *uint32
	Fanout    bool   // it shares its frames with others
	Filter    []byte // classic BPF, 8 bytes an instruction, in this machine's order
	Cookie    uint64
}

// Attributes of a packet socket, PACKET_DIAG_….
const (
	packetInfo   = 0
	packetFanout = 4
	packetUID    = 5
	packetFilter = 7
)

// Packets lists the packet sockets.
func Packets(ctx context.Context, c *netlink.Conn, do func(*Packet) error, odd func(error)) error {
	const show = 0x01 | 0x08 | 0x20 // PACKET_SHOW_INFO, FANOUT, FILTER
	request := append([]byte{familyPacket, 0, 0, 0}, words(0, show, 0, 0)...)
	return dump(ctx, c, request, ParsePacket, do, odd)
}

// ParsePacket reads a struct packet_diag_msg and what follows.
func ParsePacket(b []byte) (*Packet, error) {
	fixed, attributes, err := head(b, "packet", 16)
	if err != nil {
		return nil, err
	}
	s := &Packet{Type: fixed[1], Protocol: binary.NativeEndian.Uint16(fixed[2:]), Inode: word(fixed[4:]), Cookie: quad(fixed[8:])}
	for kind, value := range netlink.Attributes(attributes) {
		switch {
		case kind == packetInfo && len(value) >= 4:
			s.Interface = word(value)
		case kind == packetFanout:
			s.Fanout = true
		case kind == packetUID && len(value) == 4:
			uid := word(value)
			s.UID = &uid
		case kind == packetFilter:
			s.Filter = append([]byte(nil), value...)
		}
	}
	return s, nil
}

// Vsock is a socket between a virtual machine and its host, as a Nitro enclave
// has.
type Vsock struct {
	Type, State           uint8
	CID, Port             uint32
	RemoteCID, RemotePort uint32
	Inode                 uint32
	Cookie                uint64
}

// Vsocks lists the sockets of the family AF_VSOCK.
func Vsocks(ctx context.Context, c *netlink.Conn, do func(*Vsock) error, odd func(error)) error {
	request := append([]byte{familyVsock, 0, 0, 0}, words(allStates, 0, 0, 0, 0)...)
	return dump(ctx, c, request, ParseVsock, do, odd)
}

// ParseVsock reads a struct vsock_diag_msg.
func ParseVsock(b []byte) (*Vsock, error) {
	fixed, _, err := head(b, "vsock", 32)
	if err != nil {
		return nil, err
	}
	return &Vsock{Type: fixed[1], State: fixed[2], CID: word(fixed[4:]), Port: word(fixed[8:]), RemoteCID: word(fixed[12:]),
		RemotePort: word(fixed[16:]), Inode: word(fixed[20:]), Cookie: quad(fixed[24:])}, nil
}
