package artifact

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	psnet "github.com/shirou/gopsutil/v3/net"
	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

// ours keeps the sockets that this process holds.
func ours(all []Socket, kind string) []Socket {
	var out []Socket
	for _, row := range all {
		if row.Kind == kind && slices.ContainsFunc(row.Owners, func(o SocketOwner) bool { return o.PID == os.Getpid() }) {
			out = append(out, row)
		}
	}
	return out
}

func TestSocketsTellWhoListens(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	all, _ := table[Socket](t, new(Host), "sockets")
	for _, row := range ours(all, "tcp") {
		if net.JoinHostPort(row.LocalIP, itoa(int(row.LocalPort))) == listener.Addr().String() {
			if row.State != "LISTEN" || row.NetNS == 0 || row.UID == nil || int(*row.UID) != os.Getuid() {
				t.Errorf("wrong: %+v", row)
			}
			return
		}
	}
	t.Errorf("no row for %s of this process", listener.Addr())
}

// Where gopsutil gives one row for several sockets, every one is told here.
func TestSocketsAreNotCollapsed(t *testing.T) {
	const many = 40
	var address string
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	for i := range 4 {
		if i == 0 {
			address = "127.0.0.1:0"
		}
		listener, err := config.Listen(context.Background(), "tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		address = listener.Addr().String()
	}
	for range many {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
	}
	all, _ := table[Socket](t, new(Host), "sockets")
	listeners := 0
	for _, row := range ours(all, "tcp") {
		if net.JoinHostPort(row.LocalIP, itoa(int(row.LocalPort))) == address {
			listeners++
		}
	}
	unixes := len(ours(all, "unix"))
	if listeners != 4 || unixes < 2*many {
		t.Errorf("%d listeners and %d unix sockets, want 4 and %d", listeners, unixes, 2*many)
	}
	theirs, err := psnet.ConnectionsPid("unix", int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if len(theirs) > unixes {
		t.Errorf("gopsutil sees %d unix sockets, we %d", len(theirs), unixes)
	}
	t.Logf("unix sockets of this process: %d here, %d by gopsutil", unixes, len(theirs))
}

func TestSocketsOfOtherKinds(t *testing.T) {
	abstract, err := net.Listen("unix", "@artifact\nof several lines")
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	netlink, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(netlink)
	if err := unix.Bind(netlink, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	all, record := table[Socket](t, new(Host), "sockets")
	found := slices.ContainsFunc(ours(all, "unix"), func(s Socket) bool {
		return s.Path == "@artifact\nof several lines" && s.State == "LISTEN" && s.Type == "stream"
	})
	if !found {
		t.Error("a unix socket whose name has several lines is not told")
	}
	if len(ours(all, "netlink")) == 0 {
		t.Error("a netlink socket is not told")
	}
	for _, e := range record {
		if e.Note == NoteOdd {
			t.Errorf("a line was not understood: %+v", e)
		}
	}
	if os.Geteuid() != 0 {
		t.Log("packet and raw sockets need root: not tried")
		return
	}
	packet, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(packet)
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	all, _ = table[Socket](t, new(Host), "sockets")
	if rows := ours(all, "packet"); len(rows) != 1 || rows[0].Protocol != "0003" || rows[0].Type != "raw" {
		t.Errorf("packet sockets: %+v", rows)
	}
	if rows := ours(all, "raw"); len(rows) != 1 || rows[0].LocalPort != unix.IPPROTO_ICMP {
		t.Errorf("raw sockets: %+v", rows)
	}
}

// Two network namespaces, two processes that share a socket in one of them.
func TestSocketsOfEveryNamespace(t *testing.T) {
	root := t.TempDir()
	const heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	line := func(port, inode int) string {
		return fmt.Sprintf("   0: 0100007F:%04X 00000000:0000 0A 00000001:00000002 00:00000000 00000000  1000        0 %d 1 0000000000000000 100 0 0 10 0\n", port, inode)
	}
	place(t, root, map[string]string{
		"proc/1/net/tcp":  heading + line(22, 100),
		"proc/2/net/tcp":  heading + line(22, 100),
		"proc/30/net/tcp": heading + line(4444, 200) + "garbage\n",
	})
	for pid, ns := range map[int]int{1: 42, 2: 42, 30: 43} {
		for name, target := range map[string]string{"ns/net": fmt.Sprintf("net:[%d]", ns), "fd/3": fmt.Sprintf("socket:[%d]", map[int]int{42: 100, 43: 200}[ns])} {
			path := filepath.Join(root, "proc", itoa(pid), name)
			os.MkdirAll(filepath.Dir(path), 0o755)
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	uid := uint32(1000)
	want := []Socket{
		{NetNS: 42, Kind: "tcp", State: "LISTEN", LocalIP: "127.0.0.1", LocalPort: 22, RemoteIP: "0.0.0.0", SendQueue: 1, RecvQueue: 2, UID: &uid, Inode: 100, Owners: []SocketOwner{{1, 3}, {2, 3}}},
		{NetNS: 43, Kind: "tcp", State: "LISTEN", LocalIP: "127.0.0.1", LocalPort: 4444, RemoteIP: "0.0.0.0", SendQueue: 1, RecvQueue: 2, UID: &uid, Inode: 200, Owners: []SocketOwner{{30, 3}}},
	}
	got, record := table[Socket](t, &Host{Root: root}, "sockets")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if e := find(t, record, "/proc/net/tcp"); e.Note != NoteOdd || e.Detail != "garbage" {
		t.Errorf("on record is %+v", e)
	}
}

// One process whose links refuse to be read makes one entry, not thousands.
func TestOpenFilesSumUpRefusals(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{"proc/5/fd/0": "", "proc/5/fd/1": "", "proc/5/fd/2": ""})
	_, record := table[OpenFile](t, &Host{Root: root}, "open_files")
	if e := find(t, record, "/proc/5/fd"); e.Errno != "EINVAL" || !strings.Contains(string(e.Error), "3 descriptors") || len(record) != 2 {
		t.Errorf("on record is %+v", record)
	}
}

func TestOpenFilesTellOfDeletedOnes(t *testing.T) {
	fd, err := unix.MemfdCreate("planted", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("seven b")); err != nil {
		t.Fatal(err)
	}
	all, _ := table[OpenFile](t, new(Host), "open_files")
	for _, row := range all {
		if row.PID == os.Getpid() && row.FD == fd {
			if row.Target != "/memfd:planted (deleted)" || !row.Deleted || row.Pos != 7 || !strings.HasSuffix(row.Flags, "2") {
				t.Errorf("wrong: %+v", row)
			}
			return
		}
	}
	t.Error("the memfd is not told")
}

func TestParseInet6(t *testing.T) {
	row := parseInet([]byte("   1: B80D01200000000067452301EFCDAB89:01BB 00000000000000000000000001000000:C350 01 00000000:00000000 00:00000000 00000000     0        0 7 1"))
	if row == nil || row.LocalIP != "2001:db8::123:4567:89ab:cdef" || row.LocalPort != 443 || row.RemoteIP != "::1" || row.RemotePort != 50000 {
		t.Errorf("got %+v", row)
	}
}

func FuzzSocketLines(f *testing.F) {
	f.Add([]byte("   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 100 1"))
	f.Add([]byte("00000000d12fff42: 00000003 00000000 00010000 0001 03  1588 /run/x y\xff"))
	f.Add([]byte("00000000c3d36560 3      3    0003   2     1 0      0      4096"))
	f.Add([]byte("00000000c3d36560 0   0          00000000 0        0        0     2        0        4"))
	f.Fuzz(func(t *testing.T, line []byte) {
		for _, file := range socketKinds {
			if file.parse == nil {
				continue
			}
			if row := file.parse(line); row != nil && len(row.Path) > maxPath {
				t.Errorf("%s: unbounded path", file.name)
			}
		}
	})
}

func FuzzNetworkLines(f *testing.F) {
	f.Add([]byte("eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0"))
	f.Add([]byte("fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0"))
	f.Add([]byte("10.0.0.1         0x1         0x2         02:aa:bb:cc:dd:ee     *        eth0"))
	f.Add([]byte("  eth0: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0"))
	f.Add([]byte("fe8000000000000000aabbfffeccddee 02 40 20 80     eth0"))
	f.Fuzz(func(t *testing.T, line []byte) {
		parseRoute(line)
		parseRoute6(line)
		parseARP(line)
		parseDev(line)
		parseIfInet6(line)
	})
}
