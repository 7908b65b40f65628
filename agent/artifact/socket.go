package artifact

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Socket is a row of the table sockets. Fields that its kind does not have
// are left out, and so are those that only sock_diag tells where /proc/net had
// to do; the record says where. A socket that waits for others is one in LISTEN,
// or of UDP and UNCONNECTED.
type Socket struct {
	NetNS uint64 `json:"netns"` // inode of the network namespace; 0 where it could not be asked
	// Kind is tcp, tcp6, udp, udp6, udplite, udplite6, icmp, icmp6, raw, raw6,
	// unix, packet or netlink, as the file of /proc/net is called; or mptcp,
	// mptcp6, sctp, sctp6, dccp, dccp6 or vsock, which have none.
	Kind  string `json:"kind"`
	State string `json:"state,omitempty"` // LISTEN, ESTABLISHED …
	// The ends of an internet socket. A port of 0 is left out. For raw and
	// icmp the local port is the protocol or the identifier.
	LocalIP    string `json:"local_ip,omitempty"`
	LocalPort  uint16 `json:"local_port,omitempty"`
	RemoteIP   string `json:"remote_ip,omitempty"`
	RemotePort uint16 `json:"remote_port,omitempty"`
	// Bytes, of internet and unix sockets. Of a listening one SendQueue is how
	// many connections may wait, where sock_diag tells, and RecvQueue how many do.
	SendQueue uint64 `json:"send_queue,omitempty"`
	RecvQueue uint64 `json:"recv_queue,omitempty"`

	Path     Text   `json:"path,omitempty"`     // unix; a leading @ is the abstract name space
	Type     string `json:"type,omitempty"`     // unix, packet, netlink, vsock: stream, dgram, raw, seqpacket
	Protocol string `json:"protocol,omitempty"` // packet: EtherType in hex; netlink: its number
	IfIndex  int    `json:"ifindex,omitempty"`  // packet; an internet socket that is bound to an interface
	PortID   uint32 `json:"port_id,omitempty"`  // netlink: most often a PID
	Groups   string `json:"groups,omitempty"`   // netlink: multicast groups, 32 of them, in hex

	UID   *uint32 `json:"uid,omitempty"` // netlink and vsock do not tell, nor unix before Linux 5.3
	Inode uint64  `json:"inode"`         // 0 for a socket without a process, as in TIME_WAIT
	// Owners are all the processes that hold it, at most 64.
	Owners          []SocketOwner `json:"owners,omitempty"`
	OwnersTruncated bool          `json:"owners_truncated,omitempty"`

	// What follows sock_diag alone tells.
	Cookie      uint64   `json:"cookie,omitempty"`    // names the socket while the host runs, also one without an inode
	CgroupID    uint64   `json:"cgroup_id,omitempty"` // inode of its control group's folder, of version 2
	Mark        uint32   `json:"mark,omitempty"`      // SO_MARK
	Timer       string   `json:"timer,omitempty"`     // internet: retransmit, keepalive, time_wait, probe
	TimerMS     uint32   `json:"timer_ms,omitempty"`  // until it fires
	Retransmits uint8    `json:"retransmits,omitempty"`
	Congestion  string   `json:"congestion,omitempty"` // TCP's algorithm: cubic, bbr …
	ULP         string   `json:"ulp,omitempty"`        // what rides on TCP in the kernel: tls, mptcp, espintcp
	TCP         *TCPInfo `json:"tcp,omitempty"`
	Peer        uint64   `json:"peer,omitempty"`        // unix: inode of the other end
	FileInode   uint64   `json:"file_inode,omitempty"`  // unix: of the file that it is bound to
	FileDevice  string   `json:"file_device,omitempty"` // unix: that file's, MAJOR:MINOR
	Shutdown    uint8    `json:"shutdown,omitempty"`    // unix: 1 reads no more, 2 writes no more
	PeerPortID  uint32   `json:"peer_port_id,omitempty"`
	Fanout      bool     `json:"fanout,omitempty"` // packet: it shares what it takes with others
	Filter      string   `json:"filter,omitempty"` // packet: classic BPF in hex, 8 bytes an instruction, at most 32 KiB of them
	LocalCID    uint32   `json:"local_cid,omitempty"`
	LocalVPort  uint32   `json:"local_vport,omitempty"` // vsock
	RemoteCID   uint32   `json:"remote_cid,omitempty"`
	RemoteVPort uint32   `json:"remote_vport,omitempty"`
}

// TCPInfo is what the kernel knows of a TCP connection. What it does not tell,
// as an older one, is left out. Source: linux/uapi/linux/tcp.h, tcp_info.
type TCPInfo struct {
	RTTUS         uint32 `json:"rtt_us,omitempty"`
	RTTVarUS      uint32 `json:"rttvar_us,omitempty"`
	MinRTTUS      uint32 `json:"min_rtt_us,omitempty"`
	RTOUS         uint32 `json:"rto_us,omitempty"`
	SentMS        uint32 `json:"since_sent_ms,omitempty"`     // since data was last sent
	ReceivedMS    uint32 `json:"since_received_ms,omitempty"` // and received
	MTU           uint32 `json:"mtu,omitempty"`
	Window        uint32 `json:"cwnd,omitempty"`          // segments
	Retransmitted uint32 `json:"total_retrans,omitempty"` // segments, since the connection began
	SegmentsOut   uint32 `json:"segments_out,omitempty"`
	SegmentsIn    uint32 `json:"segments_in,omitempty"`
	BytesSent     uint64 `json:"bytes_sent,omitempty"`
	BytesAcked    uint64 `json:"bytes_acked,omitempty"`
	BytesReceived uint64 `json:"bytes_received,omitempty"`
}

// SocketOwner is a process's hold on a socket.
type SocketOwner struct {
	PID int `json:"pid"`
	FD  int `json:"fd"`
}

// socketParser reads a line of a file of /proc/net. It gives nil for a line
// that has not the form of a row, which the first line, the heading, is.
type socketParser func(line []byte) *Socket

// fillSockets writes the table sockets, of each network namespace by sock_diag,
// or by /proc/net where the kernel has none. gopsutil sees one network
// namespace, joins unix sockets of one type and listeners that share a port
// into one, names one owner, and knows no raw, packet or netlink sockets.
func fillSockets(h *Host, s *sheet) error {
	held, err := h.walkHolders(s)
	if err != nil {
		return err
	}
	spaces, err := h.netSpaces(s)
	if err != nil {
		return err
	}
	kinds := h.socketKinds(s)
	for _, ns := range spaces {
		if err := h.fillSpace(s, ns, kinds, held); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) fillSocketFile(s *sheet, ns namespace, name string, parse socketParser, held *holders) error {
	// A row is held until the next begins: a unix socket's path may hold line
	// ends, so lines that are no row belong to the path before them. A path
	// that itself looks like a row cannot be told from one here.
	var last *Socket
	flush := func() error {
		if last == nil {
			return nil
		}
		last.Kind, last.NetNS = name, ns.id
		last.State = socketState(name, last.State)
		held.own(last)
		return s.put(last)
	}
	first := true
	err := h.throughNamespace(s, ns, "net/"+name, func(line []byte) error {
		heading := first
		first = false
		row := parse(line)
		switch {
		case row != nil:
			err := flush()
			last = row
			return err
		case heading:
		case name == "unix" && last != nil && len(last.Path) < maxPath:
			last.Path += "\n" + clip(line, maxPath-len(last.Path))
		case len(line) > 0:
			s.note("/proc/net/"+name, NoteOdd, string(clip(line, maxWord)))
		}
		return nil
	})
	return errors.Join(err, flush())
}

// tcpStates name the states of linux/include/net/tcp_states.h.
var tcpStates = map[string]string{
	"01": "ESTABLISHED", "02": "SYN_SENT", "03": "SYN_RECV", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "06": "TIME_WAIT",
	"07": "CLOSE", "08": "CLOSE_WAIT", "09": "LAST_ACK", "0A": "LISTEN", "0B": "CLOSING", "0C": "NEW_SYN_RECV",
}

// socketState names a state. Sockets without connections use those of TCP:
// CLOSE is theirs when they have no peer.
func socketState(kind, code string) string {
	if code == "07" && !strings.HasPrefix(kind, "tcp") {
		return "UNCONNECTED"
	}
	if name, ok := tcpStates[code]; ok {
		return name
	}
	return code
}

// parseInet reads a line of tcp, udp, udplite, icmp or raw, of either address
// family. Source: linux/net/ipv4/tcp_ipv4.c, get_tcp4_sock, and its kin.
func parseInet(line []byte) *Socket {
	f := strings.Fields(string(line))
	if len(f) < 10 || !strings.HasSuffix(f[0], ":") {
		return nil
	}
	var row Socket
	var err [6]error
	row.LocalIP, row.LocalPort, err[0] = parseEnd(f[1])
	row.RemoteIP, row.RemotePort, err[1] = parseEnd(f[2])
	send, recv, _ := strings.Cut(f[4], ":")
	row.SendQueue, err[2] = strconv.ParseUint(send, 16, 64)
	row.RecvQueue, err[3] = strconv.ParseUint(recv, 16, 64)
	row.UID, err[4] = parseUID(f[7])
	row.Inode, err[5] = strconv.ParseUint(f[9], 10, 64)
	if len(f[3]) != 2 || errors.Join(err[:]...) != nil {
		return nil
	}
	row.State = f[3]
	return &row
}

// parseEnd reads ADDRESS:PORT, both in hex, the address as 32-bit words in the
// byte order of this machine.
func parseEnd(word string) (ip string, port uint16, err error) {
	address, number, found := strings.Cut(word, ":")
	p, err := strconv.ParseUint(number, 16, 16)
	if err != nil || !found {
		return "", 0, fmt.Errorf("cannot read address %.80q: want ADDRESS:PORT in hex", word)
	}
	addr, err := parseHexIP(address)
	return addr, uint16(p), err
}

func parseHexIP(word string) (string, error) {
	raw, err := hex.DecodeString(word)
	if err != nil || (len(raw) != 4 && len(raw) != 16) {
		return "", fmt.Errorf("cannot read address %.80q: want 8 or 32 hex digits", word)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return addr.String(), nil
}

func parseUID(word string) (*uint32, error) {
	n, err := strconv.ParseUint(word, 10, 32)
	uid := uint32(n)
	return &uid, err
}

// socketTypes name the types of linux/net.h.
var socketTypes = map[uint64]string{1: "stream", 2: "dgram", 3: "raw", 5: "seqpacket", 10: "packet"}

func socketType(n uint64) string {
	if name, ok := socketTypes[n]; ok {
		return name
	}
	return strconv.FormatUint(n, 10)
}

const listening = 1 << 16 // __SO_ACCEPTCON of linux/net.h

// parseUnix reads a line of unix: Num RefCount Protocol Flags Type St Inode,
// and a path that may hold anything.
// Source: linux/net/unix/af_unix.c, unix_seq_show.
func parseUnix(line []byte) *Socket {
	var word [7]string
	rest := string(line)
	for i := range word {
		rest = strings.TrimLeft(rest, " ")
		word[i], rest, _ = strings.Cut(rest, " ")
	}
	if len(word[0]) < 9 || word[0][len(word[0])-1] != ':' {
		return nil
	}
	for i, width := range []int{8, 8, 8, 4, 2} {
		if len(word[i+1]) != width {
			return nil
		}
	}
	flags, err1 := strconv.ParseUint(word[3], 16, 32)
	kind, err2 := strconv.ParseUint(word[4], 16, 16)
	state, err3 := strconv.ParseUint(word[5], 16, 8)
	inode, err4 := strconv.ParseUint(word[6], 10, 64)
	if errors.Join(err1, err2, err3, err4) != nil {
		return nil
	}
	row := &Socket{Type: socketType(kind), Inode: inode, Path: clip(rest, maxPath), State: unixState(state)}
	if flags&listening != 0 {
		row.State = "LISTEN"
	}
	return row
}

// unixState names a state of linux/net.h, socket_state.
func unixState(n uint64) string {
	names := []string{"FREE", "UNCONNECTED", "CONNECTING", "CONNECTED", "DISCONNECTING"}
	if n < uint64(len(names)) {
		return names[n]
	}
	return strconv.FormatUint(n, 10)
}

// parsePacket reads a line of packet: sk RefCnt Type Proto Iface R Rmem User
// Inode. Source: linux/net/packet/af_packet.c, packet_seq_show.
func parsePacket(line []byte) *Socket {
	f := strings.Fields(string(line))
	if len(f) != 9 || len(f[3]) != 4 {
		return nil
	}
	kind, err1 := strconv.ParseUint(f[2], 10, 16)
	_, err2 := strconv.ParseUint(f[3], 16, 16)
	ifindex, err3 := strconv.ParseUint(f[4], 10, 31)
	uid, err4 := parseUID(f[7])
	inode, err5 := strconv.ParseUint(f[8], 10, 64)
	if errors.Join(err1, err2, err3, err4, err5) != nil {
		return nil
	}
	return &Socket{Type: socketType(kind), Protocol: f[3], IfIndex: int(ifindex), UID: uid, Inode: inode}
}

// parseNetlink reads a line of netlink: sk Eth Pid Groups Rmem Wmem Dump Locks
// Drops Inode. Source: linux/net/netlink/af_netlink.c, netlink_native_seq_show.
func parseNetlink(line []byte) *Socket {
	f := strings.Fields(string(line))
	if len(f) != 10 || len(f[3]) != 8 {
		return nil
	}
	_, err1 := strconv.ParseUint(f[1], 10, 16)
	port, err2 := strconv.ParseUint(f[2], 10, 32)
	_, err3 := strconv.ParseUint(f[3], 16, 32)
	inode, err4 := strconv.ParseUint(f[9], 10, 64)
	if errors.Join(err1, err2, err3, err4) != nil {
		return nil
	}
	return &Socket{Protocol: f[1], PortID: uint32(port), Groups: f[3], Inode: inode}
}
