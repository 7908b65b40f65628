package artifact

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
	"github.com/quicklime-ir/quicklime/agent/artifact/sockdiag"
)

// maxFilter bounds a packet socket's filter, in bytes: BPF_MAXINSNS of
// linux/bpf_common.h, 4,096 instructions.
const maxFilter = 4096 * 8

// socketDump lists the sockets of one kind. A row is do's until it returns.
type socketDump func(ctx context.Context, c *netlink.Conn, do func(*Socket) error, odd func(error)) error

// socketKind is one kind of sockets, and how to list them.
type socketKind struct {
	name   string       // of the file of /proc/net, where there is one
	parse  socketParser // of its lines; nil where there is none
	module string       // that has the dump, where it is not built in
	dump   socketDump   // nil where sock_diag has none
}

var socketKinds = []socketKind{
	{"tcp", parseInet, "tcp_diag", inetDump(unix.AF_INET, sockdiag.TCP)},
	{"tcp6", parseInet, "tcp_diag", inetDump(unix.AF_INET6, sockdiag.TCP)},
	{"udp", parseInet, "udp_diag", inetDump(unix.AF_INET, sockdiag.UDP)},
	{"udp6", parseInet, "udp_diag", inetDump(unix.AF_INET6, sockdiag.UDP)},
	{"raw", parseInet, "raw_diag", inetDump(unix.AF_INET, sockdiag.Raw)},
	{"raw6", parseInet, "raw_diag", inetDump(unix.AF_INET6, sockdiag.Raw)},
	{"icmp", parseInet, "", nil},
	{"icmp6", parseInet, "", nil},
	{"udplite", parseInet, "udp_diag", inetDump(unix.AF_INET, sockdiag.UDPLite)},
	{"udplite6", parseInet, "udp_diag", inetDump(unix.AF_INET6, sockdiag.UDPLite)},
	{"mptcp", nil, "mptcp_diag", inetDump(unix.AF_INET, sockdiag.MPTCP)},
	{"mptcp6", nil, "mptcp_diag", inetDump(unix.AF_INET6, sockdiag.MPTCP)},
	{"sctp", nil, "sctp_diag", inetDump(unix.AF_INET, sockdiag.SCTP)},
	{"sctp6", nil, "sctp_diag", inetDump(unix.AF_INET6, sockdiag.SCTP)},
	{"dccp", nil, "dccp_diag", inetDump(unix.AF_INET, sockdiag.DCCP)},
	{"dccp6", nil, "dccp_diag", inetDump(unix.AF_INET6, sockdiag.DCCP)},
	{"packet", parsePacket, "af_packet_diag", packetDump},
	{"unix", parseUnix, "unix_diag", unixDump},
	{"netlink", parseNetlink, "netlink_diag", netlinkDump},
	{"vsock", nil, "vsock_diag", vsockDump},
}

// socketKinds gives the kinds, those without a dump that cannot be asked for on
// this host. To load the kernel's module for it would run modprobe and leave a
// trace: it is not done, and /proc/net read instead.
func (h *Host) socketKinds(s *sheet) []socketKind {
	kinds := append([]socketKind(nil), socketKinds...)
	for i := range kinds {
		k := &kinds[i]
		switch {
		case k.dump == nil:
		case !h.running():
			k.dump = nil
		case !h.askable(k.module):
			k.fallBack(s, fmt.Errorf("%s: %w", k.module, errWouldLoad))
		}
	}
	return kinds
}

// fallBack makes do with /proc/net from now on.
func (k *socketKind) fallBack(s *sheet, why error) {
	k.dump = nil
	if k.parse == nil {
		s.note("sock_diag "+k.name, NoteNone, why.Error())
		return
	}
	s.note("/proc/net/"+k.name, NoteFallback, why.Error())
}

// fillSpace writes the sockets of one network namespace.
func (h *Host) fillSpace(s *sheet, ns namespace, kinds []socketKind, held *holders) error {
	var conn *netlink.Conn
	if h.running() {
		var err error
		if conn, err = h.dial(ns, unix.NETLINK_SOCK_DIAG); err != nil {
			s.failed(fmt.Sprintf("sock_diag of network namespace %d", ns.id), err)
		} else {
			defer conn.Close()
		}
	}
	for i := range kinds {
		k := &kinds[i]
		if conn != nil && k.dump != nil {
			told, err := k.ask(s, conn, ns, held)
			if err != nil {
				return err
			}
			if told {
				continue
			}
		}
		if k.parse == nil {
			continue
		}
		if err := h.fillSocketFile(s, ns, k.name, k.parse, held); err != nil {
			return err
		}
	}
	return nil
}

// ask writes what sock_diag tells of one kind. It reports whether that is all
// there is to have: if not, nothing was written, and the file is to be read.
// It fails only when the table's place or context does.
func (k *socketKind) ask(s *sheet, conn *netlink.Conn, ns namespace, held *holders) (told bool, err error) {
	a := &answer{s: s, shown: fmt.Sprintf("sock_diag %s of network namespace %d", k.name, ns.id)}
	err = k.dump(s.ctx, conn, func(row *Socket) error {
		row.Kind, row.NetNS = k.name, ns.id
		held.own(row)
		return a.put(row)
	}, a.odd)
	if a.rows == 0 && noList(err) {
		k.fallBack(s, fmt.Errorf("this kernel's sock_diag does not list %s: %s", k.name, errnoName(err)))
		return false, nil
	}
	return a.end(err)
}

// noList tells whether the kernel says that it has no such list.
func noList(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// diagState names a state of linux/net/tcp_states.h, which sock_diag uses for
// every family.
func diagState(kind string, n uint8) string {
	const boundInactive = 13
	if n == boundInactive {
		return "BOUND_INACTIVE"
	}
	return socketState(kind, fmt.Sprintf("%02X", n))
}

// timers name the timers of linux/inet_diag.h.
var timers = []string{"", "retransmit", "keepalive", "time_wait", "probe"}

func inetDump(family uint8, protocol uint32) socketDump {
	kind := "tcp"
	if protocol != sockdiag.TCP && protocol != sockdiag.MPTCP && protocol != sockdiag.DCCP && protocol != sockdiag.SCTP {
		kind = "udp"
	}
	return func(ctx context.Context, c *netlink.Conn, do func(*Socket) error, odd func(error)) error {
		row := new(Socket) // one for all, as there may be 100,000
		return sockdiag.Inets(ctx, c, family, protocol, func(in *sockdiag.Inet) error {
			row.fromInet(kind, in)
			return do(row)
		}, odd)
	}
}

func (row *Socket) fromInet(kind string, in *sockdiag.Inet) {
	*row = Socket{
		Owners:  row.Owners[:0],
		State:   diagState(kind, in.State),
		LocalIP: in.Local.Addr().String(), LocalPort: in.Local.Port(), RemoteIP: in.Remote.Addr().String(), RemotePort: in.Remote.Port(),
		SendQueue: uint64(in.SendQ), RecvQueue: uint64(in.RecvQ), IfIndex: int(in.Interface), UID: &in.UID, Inode: uint64(in.Inode),
		Cookie: in.Cookie, CgroupID: in.Cgroup, Mark: in.Mark, Congestion: in.Congestion, ULP: in.ULP,
	}
	if in.Timer > 0 {
		row.Timer, row.TimerMS, row.Retransmits = strconv.Itoa(int(in.Timer)), in.TimerMS, in.Retransmits
		if int(in.Timer) < len(timers) {
			row.Timer = timers[in.Timer]
		}
	}
	if t := in.TCP; t != nil && row.State != "LISTEN" {
		row.TCP = &TCPInfo{RTTUS: t.RTT, RTTVarUS: t.RTTVar, MinRTTUS: t.MinRTT, RTOUS: t.RTO, SentMS: t.SinceSent, ReceivedMS: t.SinceReceived,
			MTU: t.MTU, Window: t.Window, Retransmitted: t.TotalRetransmit, SegmentsOut: t.SegsOut, SegmentsIn: t.SegsIn,
			BytesSent: t.Sent, BytesAcked: t.Acked, BytesReceived: t.Received}
	}
}

func unixDump(ctx context.Context, c *netlink.Conn, do func(*Socket) error, odd func(error)) error {
	return sockdiag.Unixes(ctx, c, func(u *sockdiag.Unix) error { return do(unixRow(u)) }, odd)
}

func unixRow(u *sockdiag.Unix) *Socket {
	row := &Socket{Type: socketType(uint64(u.Type)), Inode: uint64(u.Inode), Peer: uint64(u.Peer), UID: u.UID, Shutdown: u.Shutdown, Cookie: u.Cookie,
		SendQueue: uint64(u.SendQ), RecvQueue: uint64(u.RecvQ), FileInode: uint64(u.FileInode), Path: clip(u.Name, maxPath)}
	if len(u.Name) > 0 && u.Name[0] == 0 {
		row.Path = "@" + row.Path[1:]
	}
	if u.FileInode != 0 {
		row.FileDevice = fmt.Sprintf("%d:%d", u.FileDevice>>20, u.FileDevice&0xfffff)
	}
	switch state := diagState("unix", u.State); state {
	case "ESTABLISHED":
		row.State = "CONNECTED"
	default:
		row.State = state
	}
	return row
}

func netlinkDump(ctx context.Context, c *netlink.Conn, do func(*Socket) error, odd func(error)) error {
	return sockdiag.Netlinks(ctx, c, func(n *sockdiag.Netlink) error {
		row := &Socket{Type: socketType(uint64(n.Type)), Protocol: strconv.Itoa(int(n.Protocol)), PortID: n.PortID, PeerPortID: n.Peer,
			Inode: uint64(n.Inode), Cookie: n.Cookie, Groups: "00000000"}
		if len(n.Groups) >= 4 {
			row.Groups = fmt.Sprintf("%08x", binary.NativeEndian.Uint32(n.Groups))
		}
		return do(row)
	}, odd)
}

func packetDump(ctx context.Context, c *netlink.Conn, do func(*Socket) error, odd func(error)) error {
	return sockdiag.Packets(ctx, c, func(p *sockdiag.Packet) error {
		return do(&Socket{Type: socketType(uint64(p.Type)), Protocol: fmt.Sprintf("%04x", p.Protocol), IfIndex: int(p.Interface), UID: p.UID,
			Inode: uint64(p.Inode), Cookie: p.Cookie, Fanout: p.Fanout, Filter: hex.EncodeToString(p.Filter[:min(len(p.Filter), maxFilter)])})
	}, odd)
}

func vsockDump(ctx context.Context, c *netlink.Conn, do func(*Socket) error, odd func(error)) error {
	return sockdiag.Vsocks(ctx, c, func(v *sockdiag.Vsock) error {
		return do(&Socket{Type: socketType(uint64(v.Type)), State: diagState("tcp", v.State), LocalCID: v.CID, LocalVPort: v.Port,
			RemoteCID: v.RemoteCID, RemoteVPort: v.RemotePort, Inode: uint64(v.Inode), Cookie: v.Cookie})
	}, odd)
}
