package artifact

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	psnet "github.com/shirou/gopsutil/v3/net"
	"golang.org/x/sys/unix"
)

// talkVariable makes the child listen twice on one port, with SO_REUSEPORT, and
// say "seven b" to itself over it.
const (
	talkVariable = "ARTIFACT_TEST_TALK"
	talkPort     = "127.0.0.1:4444"
)

// talking keeps the child's sockets open.
var talking []io.Closer

func talk() {
	check := func(err error) {
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
	check(raiseLoopback())
	config := net.ListenConfig{Control: reusePort}
	first, err := config.Listen(context.Background(), "tcp4", talkPort)
	check(err)
	second, err := config.Listen(context.Background(), "tcp4", talkPort)
	check(err)
	// Either may get the connection; the kernel completes it before one does.
	conn, err := net.Dial("tcp4", talkPort)
	check(err)
	_, err = io.WriteString(conn, "seven b")
	check(err)
	talking = []io.Closer{first, second, conn}
}

func reusePort(_, _ string, c syscall.RawConn) (err error) {
	c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return err
}

// raiseLoopback sets lo up, which in a new network namespace it is not.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// elsewhere starts a child in a network namespace of its own.
func elsewhere(t *testing.T, environ ...string) (pid int, netns uint64) {
	t.Helper()
	needRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	pid = plant(t, cmd, environ...)
	netns, err := new(Host).namespaceOf(itoa(pid), "net")
	if err != nil {
		t.Fatal(err)
	}
	if own, _ := new(Host).namespaceOf("self", "net"); own == netns {
		t.Fatal("the child is in our network namespace")
	}
	return pid, netns
}

// What TCP knows of a connection in another namespace, and both listeners of
// its port. gopsutil, which sees one namespace, has none of these.
func TestSocketsOfAnotherNamespace(t *testing.T) {
	pid, netns := elsewhere(t, talkVariable+"=1")
	all, record := table[Socket](t, new(Host), "sockets")
	var listeners, connections []Socket
	for _, row := range all {
		switch {
		case row.NetNS != netns || row.Kind != "tcp" || len(row.Owners) == 0:
		case row.State == "LISTEN" && row.LocalPort == 4444:
			listeners = append(listeners, row)
		case row.State == "ESTABLISHED" && row.RemotePort == 4444:
			connections = append(connections, row)
		}
	}
	if len(listeners) != 2 || listeners[0].Inode == listeners[1].Inode || listeners[0].Owners[0].PID != pid {
		t.Errorf("listeners %+v, want two of process %d", listeners, pid)
	}
	if len(connections) != 1 {
		t.Fatalf("connections %+v, want one", connections)
	}
	if unread(record, "tcp") {
		t.Skip("this kernel has no sock_diag loaded for TCP")
	}
	c := connections[0]
	if c.TCP == nil || c.TCP.BytesAcked < 7 || c.TCP.RTTUS == 0 || c.TCP.SegmentsOut == 0 || c.Congestion == "" || c.Cookie == 0 || c.LocalIP != "127.0.0.1" {
		t.Errorf("connection %+v, TCP %+v", c, c.TCP)
	}
	theirs, err := psnet.Connections("tcp4")
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(theirs, func(c psnet.ConnectionStat) bool { return int(c.Pid) == pid }) {
		t.Error("gopsutil sees the other namespace now: does the agent still need its own list?")
	}
}

// unread tells whether a kind was not had from sock_diag.
func unread(record []Entry, kind string) bool {
	return slices.ContainsFunc(record, func(e Entry) bool { return e.Note == NoteFallback && e.Path == Text("/proc/net/"+kind) })
}

func TestSocketsNameEveryOwner(t *testing.T) {
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.ExtraFiles = []*os.File{file}
	pid := plant(t, cmd)
	all, _ := table[Socket](t, new(Host), "sockets")
	for _, row := range ours(all, "tcp") {
		if int(row.LocalPort) != listener.Addr().(*net.TCPAddr).Port {
			continue
		}
		if !slices.ContainsFunc(row.Owners, func(o SocketOwner) bool { return o.PID == pid && o.FD == 3 }) || len(row.Owners) != 3 {
			t.Errorf("owners %+v, want two descriptors here and number 3 of process %d", row.Owners, pid)
		}
		return
	}
	t.Error("the shared socket is not told")
}

// Names that /proc/net cannot tell whole, and the two ends of a pair.
func TestUnixSocketsAreToldWhole(t *testing.T) {
	l, err := net.Listen("unix", "@a\x00b\nc")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	all, record := table[Socket](t, new(Host), "sockets")
	if unread(record, "unix") {
		t.Skip("this kernel has no unix_diag loaded")
	}
	byInode := map[uint64]Socket{}
	named := false
	for _, row := range ours(all, "unix") {
		byInode[row.Inode] = row
		named = named || row.Path == "@a\x00b\nc" && row.State == "LISTEN" && row.UID != nil && int(*row.UID) == os.Getuid()
	}
	if !named {
		t.Error("an abstract name with a NUL in it is not told whole")
	}
	for _, row := range byInode {
		if row.Type == "seqpacket" && row.State == "CONNECTED" && byInode[row.Peer].Peer == row.Inode {
			return
		}
	}
	t.Error("the ends of a pair do not name each other")
}

func TestPacketSocketsTellTheirFilter(t *testing.T) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300)
	if errors.Is(err, unix.EPERM) {
		t.Skip("a packet socket needs CAP_NET_RAW")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	keepAll := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0x1234}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &keepAll}); err != nil {
		t.Fatal(err)
	}
	all, record := table[Socket](t, new(Host), "sockets")
	if unread(record, "packet") {
		t.Skip("this kernel has no af_packet_diag loaded")
	}
	if rows := ours(all, "packet"); len(rows) != 1 || !strings.HasPrefix(rows[0].Filter, "0600") || len(rows[0].Filter) != 16 || rows[0].Cookie == 0 {
		t.Errorf("packet sockets %+v", rows)
	}
}

// A host that is not the running one is never asked by netlink, nor is one
// whose kernel would load a module for the answer.
func TestSocketKindsThatAreNotAsked(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"proc/modules": "", "proc/sys/kernel/modules_disabled": "0\n", "sys/module/udp_diag/refcnt": "0\n"})
	h := &Host{Root: root}
	if h.askable("tcp_diag") || !h.askable("udp_diag") {
		t.Error("tcp_diag would have to be loaded, udp_diag is")
	}
	place(t, root, map[string]string{"proc/sys/kernel/modules_disabled": "1\n"})
	if !h.askable("tcp_diag") {
		t.Error("a kernel that loads modules no more can be asked anything")
	}
	for _, kind := range h.socketKinds(nil) {
		if kind.dump != nil {
			t.Errorf("%s would be asked of the running kernel", kind.name)
		}
	}
}
