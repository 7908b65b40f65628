package artifact

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func days(n int64) *int64 { return &n }

func TestUsersTellNoHash(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nold:$1$salt$hash:1:1::/:/bin/sh\nopen::2:2::/:/bin/sh\n# remark\n+::::::\nodd\xff:x:3:3::/:\n",
		"etc/shadow": "root:$y$j9T$salt$secret:19000:0:99999:7:::\nodd\xff:!*:::::::\n",
		"etc/group":  "root:x:0:\nwheel:x:10:root,odd\n",
	})
	h := &Host{Root: root}
	got, record := table[User](t, h, "users")
	want := []User{
		{Name: "root", GECOS: "root", Home: "/root", Shell: "/bin/bash", Line: 1, Password: "set", PasswordIn: "shadow", PasswordScheme: "y",
			LastChange: days(19000), MinDays: days(0), MaxDays: days(99999), WarnDays: days(7)},
		{Name: "old", UID: 1, GID: 1, Home: "/", Shell: "/bin/sh", Line: 2, Password: "set", PasswordIn: "passwd", PasswordScheme: "1"},
		{Name: "open", UID: 2, GID: 2, Home: "/", Shell: "/bin/sh", Line: 3, Password: "empty", PasswordIn: "passwd"},
		{Name: "odd\xff", UID: 3, GID: 3, Home: "/", Line: 6, Password: "locked", PasswordIn: "shadow"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if e := find(t, record, "/etc/passwd"); e.Note != NoteOdd || e.Detail != "line 5" {
		t.Errorf("on record is %+v", e)
	}
	groups, _ := table[Group](t, h, "groups")
	if diff := cmp.Diff([]Group{{Name: "root", Line: 1}, {Name: "wheel", GID: 10, Members: []Text{"root", "odd"}, Line: 2}}, groups); diff != "" {
		t.Error(diff)
	}
}

// login makes a struct utmp.
func login(layout loginLayout, kind int16, user string, seconds int64, ip []byte) []byte {
	b := make([]byte, layout.size)
	binary.NativeEndian.PutUint16(b, uint16(kind))
	binary.NativeEndian.PutUint32(b[4:], 4711)
	copy(b[8:40], "pts/0")
	copy(b[44:76], user)
	copy(b[76:332], "203.0.113.9")
	if layout.wide {
		binary.NativeEndian.PutUint64(b[344:], uint64(seconds))
	} else {
		binary.NativeEndian.PutUint32(b[340:], uint32(seconds))
	}
	copy(b[layout.address:], ip)
	return b
}

func TestLoginsOfBothLayouts(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		layout := loginLayoutOf(arch)
		row := parseLogin(login(layout, 7, "mallory", 1_700_000_000, []byte{203, 0, 113, 9}), layout)
		want := Login{Type: "user_process", PID: 4711, Line: "pts/0", User: "mallory", Host: "203.0.113.9", IP: "203.0.113.9", Time: time.Unix(1_700_000_000, 0).UTC()}
		if diff := cmp.Diff(want, row); diff != "" {
			t.Errorf("%s: %s", arch, diff)
		}
	}
}

func TestLoginsKeepBadRecords(t *testing.T) {
	root := t.TempDir()
	layout := loginLayoutOf(runtime.GOARCH)
	records := bytes.Join([][]byte{
		login(layout, 2, "reboot", 1, nil),
		bytes.Repeat([]byte{0xff}, layout.size),
		login(layout, 7, "x\xff\n", 2, bytes.Repeat([]byte{0xfe}, 16)),
		[]byte("torn"),
	}, nil)
	place(t, root, map[string]string{"var/log/wtmp": string(records)})
	got, record := table[Login](t, &Host{Root: root}, "logins")
	if len(got) != 3 || got[0].Type != "boot_time" || got[1].Type != "-1" || !got[1].Time.IsZero() || got[2].User != "x\xff\n" || !strings.HasPrefix(got[2].IP, "fefe:") {
		t.Errorf("got %+v", got)
	}
	if e := find(t, record, "/var/log/wtmp"); e.Note != NoteOdd {
		t.Errorf("on record is %+v", e)
	}
	if e := find(t, record, "/run/utmp"); e.Note != NoteNone {
		t.Errorf("on record is %+v", e)
	}
}

func TestModulesOfBothLists(t *testing.T) {
	root := t.TempDir()
	place(t, root, map[string]string{
		"proc/modules":              "lime 20480 0 - Live 0xffffffffc0000000 (OE)\nxfs 2 1 a,b, Live 0xffffffffc0000001\nbroken\n",
		"sys/module/lime/initstate": "live\n",
		"sys/module/lime/taint":     "OE\n",
		"sys/module/hid/initstate":  "live\n",
		"sys/module/hid/refcnt":     "3\n",
		"sys/module/builtin/uevent": "",
	})
	got, record := table[Module](t, &Host{Root: root}, "modules")
	want := []Module{
		{Name: "lime", InProc: true, InSys: true, Bytes: 20480, State: "Live", Address: "0xffffffffc0000000", Taint: "OE"},
		{Name: "xfs", InProc: true, Bytes: 2, Refs: 1, UsedBy: []Text{"a", "b"}, State: "Live", Address: "0xffffffffc0000001"},
		{Name: "hid", InSys: true, Refs: 3, State: "live"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if find(t, record, "/proc/modules").Note != NoteOdd {
		t.Error("a broken line went unsaid")
	}
}

func TestParseMount(t *testing.T) {
	got := parseMount([]byte(`36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`))
	want := &Mount{ID: 36, Parent: 35, Device: "98:0", Root: "/mnt1", Point: `/mnt 2\`, Options: "rw,noatime", Propagation: "master:1", Type: "ext3", Source: "/dev/root", SuperOptions: "rw,errors=continue"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestMountsOfThisHost(t *testing.T) {
	all, record := table[Mount](t, new(Host), "mounts")
	for _, m := range all {
		if m.Type == "proc" && m.Point == "/proc" && m.MntNS != 0 {
			return
		}
	}
	t.Errorf("no /proc among %d mounts; on record: %+v", len(all), record)
}

func TestRoutes(t *testing.T) {
	for line, want := range map[string]Route{
		"eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0": {Interface: "eth0", Destination: "0.0.0.0/0", Gateway: "10.0.0.1", Metric: 100, Flags: "0003"},
		"eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0":   {Interface: "eth0", Destination: "10.0.0.0/24", Flags: "0001"},
	} {
		if got := parseRoute([]byte(line)); !cmp.Equal(got, &want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	got := parseRoute6([]byte("fe800000000000000000000000000000 40 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000100 00000001 00000000 00000001     eth0"))
	if !cmp.Equal(got, &Route{Interface: "eth0", Destination: "fe80::/64", Gateway: "fe80::1", Metric: 256, Flags: "00000001"}) {
		t.Errorf("got %+v", got)
	}
	if n := parseARP([]byte("10.0.0.1         0x1         0x2         02:aa:bb:cc:dd:ee     *        eth0")); n == nil || n.MAC != "02:aa:bb:cc:dd:ee" || n.Interface != "eth0" {
		t.Errorf("got %+v", n)
	}
}

func TestInterfacesOfThisHost(t *testing.T) {
	all, _ := table[Interface](t, new(Host), "interfaces")
	loopback, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip("this host has no loopback")
	}
	for _, row := range all {
		if row.Name == "lo" && row.Index == loopback.Index {
			if row.MTU != loopback.MTU || len(row.Flags) == 0 {
				t.Errorf("wrong: %+v", row)
			}
			return
		}
	}
	t.Errorf("no loopback among %+v", all)
}

func TestMachine(t *testing.T) {
	all, _ := table[Machine](t, new(Host), "host")
	if len(all) != 1 {
		t.Fatalf("%d rows, want 1", len(all))
	}
	m := all[0]
	name, _ := os.Hostname()
	if string(m.Hostname) != name || m.BootID == "" || m.Kernel == "" || m.CPUs == 0 || m.MemoryBytes == 0 || m.SinceBootNS == 0 || m.Settings["/proc/sys/kernel/tainted"] == "" {
		t.Errorf("missing in %+v", m)
	}
	if drift := m.Now.Sub(m.Booted) - time.Duration(m.SinceBootNS); drift.Abs() > time.Second {
		t.Errorf("the clocks disagree by %s", drift)
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/bash"))
	f.Add([]byte("root:$y$j9T$salt$secret:19000:0:99999:7:::"))
	f.Add([]byte("wheel:x:10:root,odd"))
	f.Fuzz(func(t *testing.T, line []byte) {
		parsePasswd(line)
		if u, ok := parseShadow(line); ok && len(u.PasswordScheme) > 8 {
			t.Errorf("scheme %q may be more than a scheme", u.PasswordScheme)
		}
		if g, ok := parseGroup(line); ok && len(g.Members) > maxMembers {
			t.Error("unbounded members")
		}
	})
}

func FuzzLogin(f *testing.F) {
	f.Add(login(loginLayoutOf("amd64"), 7, "x", 1, nil), false)
	f.Add(login(loginLayoutOf("arm64"), 7, "x", 1, nil), true)
	f.Fuzz(func(t *testing.T, data []byte, wide bool) {
		layout := loginLayoutOf(map[bool]string{false: "amd64", true: "arm64"}[wide])
		b := make([]byte, layout.size)
		copy(b, data)
		if _, err := parseLogin(b, layout).Time.MarshalJSON(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzKernelLists(f *testing.F) {
	f.Add([]byte(`36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`))
	f.Add([]byte("lime 20480 0 - Live 0xffffffffc0000000 (OE)"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if m := parseMount(line); m != nil && len(m.Point) > maxPath {
			t.Error("unbounded mount point")
		}
		parseModule(line)
	})
}
