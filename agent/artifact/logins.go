package artifact

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxLogins bounds the records of each file; the last ones are kept.
const maxLogins = 50_000

// Login is a row of the table logins: a record of utmp, wtmp or btmp.
type Login struct {
	File    string    `json:"file"`   // utmp: who is in now; wtmp: who was; btmp: who failed to
	Record  int64     `json:"record"` // its number in the file, from 0
	Type    string    `json:"type"`   // user_process, dead_process, boot_time … or a number
	PID     int32     `json:"pid"`
	Line    Text      `json:"line"` // the terminal
	ID      Text      `json:"id"`
	User    Text      `json:"user"` // chosen by whoever tried to log in, in btmp
	Host    Text      `json:"host"`
	IP      string    `json:"ip,omitempty"`
	Session int64     `json:"session"`
	Exit    int16     `json:"exit,omitempty"`
	Time    time.Time `json:"time"`
}

// loginFiles are where the records lie, the first that is there counting.
var loginFiles = []struct {
	name  string
	paths []string
}{
	{"utmp", []string{"run/utmp", "var/run/utmp"}},
	{"wtmp", []string{"var/log/wtmp"}},
	{"btmp", []string{"var/log/btmp"}},
	{"wtmp.1", []string{"var/log/wtmp.1"}},
	{"btmp.1", []string{"var/log/btmp.1"}},
}

// loginLayout says where the fields are that differ between architectures.
type loginLayout struct {
	size, address int
	wide          bool // session and time are 64 bits wide each
}

// loginLayoutOf gives the layout of struct utmp. On x86-64 glibc keeps the one
// of 32-bit programs; on arm64 there were none.
// Source: glibc, sysdeps/gnu/bits/utmp.h, __WORDSIZE_TIME64_COMPAT32.
func loginLayoutOf(arch string) loginLayout {
	if arch == "arm64" {
		return loginLayout{size: 400, address: 360, wide: true}
	}
	return loginLayout{size: 384, address: 348}
}

// fillLogins writes the table logins.
func fillLogins(h *Host, s *sheet) error {
	layout := loginLayoutOf(runtime.GOARCH)
	for _, file := range loginFiles {
		found := false
		for _, path := range file.paths {
			f, err := openRegular(h.path(path))
			if gone(err) {
				continue
			}
			found = true
			if err != nil {
				s.failed("/"+path, err)
				break
			}
			err = fillLoginFile(s, f, "/"+path, file.name, layout)
			f.Close()
			if err != nil {
				return err
			}
			break
		}
		if !found {
			s.note("/"+file.paths[0], NoteNone, "")
		}
	}
	return nil
}

func fillLoginFile(s *sheet, f *os.File, path, name string, layout loginLayout) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		s.failed(path, err)
		return nil
	}
	if size%int64(layout.size) != 0 {
		s.note(path, NoteOdd, fmt.Sprintf("%d bytes is no multiple of a record's %d", size, layout.size))
	}
	count := size / int64(layout.size)
	first := max(0, count-maxLogins)
	if first > 0 {
		s.note(path, NoteCut, fmt.Sprintf("the first %d records are left out", first))
	}
	buf := make([]byte, 2*layout.size) // a record, and that after it
	in := io.NewSectionReader(f, 0, size)
	number := first
	for at := first * int64(layout.size); at+int64(layout.size) <= size; at += int64(layout.size) {
		n, err := in.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			s.failed(path, err)
			return nil
		}
		row := parseLogin(buf, layout)
		row.File, row.Record = name, number
		if err := s.put(row); err != nil {
			return err
		}
		number++
		if torn := tornLogin(buf[:n], layout); torn > 0 {
			s.note(path, NoteOdd, fmt.Sprintf("record %d is torn: the next starts %d bytes after it did", row.Record, torn))
			at += int64(torn) - int64(layout.size)
		}
	}
	return nil
}

// tornLogin tells where the next record starts when the one that b starts with
// was written in part, as on a full disk; 0 is no such thing. Records are
// moved by whole words, as their sizes are. Its sign is that no record
// starts where it ends, but one does before.
func tornLogin(b []byte, layout loginLayout) int {
	size := layout.size
	if len(b) < 2*size || plausibleLogin(b[size:], layout) {
		return 0
	}
	for at := 4; at < size; at += 4 {
		if plausibleLogin(b[at:at+size], layout) && b[at] != 0 {
			return at
		}
	}
	return 0
}

// plausibleLogin reports whether bytes may be a record: a type that there is,
// padding and texts that end as texts do, a time.
func plausibleLogin(b []byte, layout loginLayout) bool {
	kind := binary.NativeEndian.Uint16(b)
	if int(kind) >= len(loginTypes) || b[2] != 0 || b[3] != 0 {
		return false
	}
	for _, text := range [][]byte{b[8:40], b[44:76], b[76:332]} {
		if end := bytes.IndexByte(text, 0); end >= 0 && len(bytes.Trim(text[end:], "\x00")) > 0 {
			return false
		}
	}
	return kind == 0 || !parseLogin(b, layout).Time.IsZero()
}

// loginTypes name ut_type. Source: utmp(5).
var loginTypes = []string{"empty", "run_level", "boot_time", "new_time", "old_time", "init_process", "login_process", "user_process", "dead_process", "accounting"}

// parseLogin reads one struct utmp of layout.size bytes.
func parseLogin(b []byte, layout loginLayout) Login {
	order := binary.NativeEndian
	kind := int16(order.Uint16(b[0:]))
	row := Login{
		Type: strconv.Itoa(int(kind)),
		PID:  int32(order.Uint32(b[4:])),
		Line: cString(b[8:40]),
		ID:   cString(b[40:44]),
		User: cString(b[44:76]),
		Host: cString(b[76:332]),
		Exit: int16(order.Uint16(b[334:])),
	}
	if kind >= 0 && int(kind) < len(loginTypes) {
		row.Type = loginTypes[kind]
	}
	var seconds, micros int64
	if layout.wide {
		row.Session = int64(order.Uint64(b[336:]))
		seconds, micros = int64(order.Uint64(b[344:])), int64(order.Uint64(b[352:]))
	} else {
		row.Session = int64(int32(order.Uint32(b[336:])))
		seconds, micros = int64(int32(order.Uint32(b[340:]))), int64(int32(order.Uint32(b[344:])))
	}
	row.Time = saneTime(seconds, micros)
	row.IP = loginIP(b[layout.address : layout.address+16])
	return row
}

// saneTime keeps a time within the years that RFC 3339, and so JSON, can tell.
// A time beyond them is the zero time.
func saneTime(seconds, micros int64) time.Time {
	const year10000 = 253402300800
	if seconds < 0 || seconds >= year10000 || micros < 0 || micros >= 1e6 {
		return time.Time{}
	}
	return time.Unix(seconds, micros*1000).UTC()
}

// loginIP reads ut_addr_v6: an IPv4 address is its first word alone.
func loginIP(b []byte) string {
	switch {
	case bytes.Equal(b, make([]byte, 16)):
		return ""
	case bytes.Equal(b[4:], make([]byte, 12)):
		return netip.AddrFrom4([4]byte(b[:4])).String()
	}
	return netip.AddrFrom16([16]byte(b)).String()
}

func cString(b []byte) Text { return Text(unix.ByteSliceToString(b)) }
