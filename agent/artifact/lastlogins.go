package artifact

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/sqlite"
)

// Bounds of the table last_logins.
const (
	maxLastLogins = 50_000    // rows of each file
	maxLoginDB    = 512 << 20 // bytes of a database
	maxLastlogs   = 1 << 20   // records of lastlog that are looked at, should it have no holes
)

// LastLogin is a row of the table last_logins.
type LastLogin struct {
	Source  string     `json:"source"`         // lastlog, lastlog2 or wtmpdb
	Record  int64      `json:"record"`         // its number in the file; of lastlog the UID
	Type    *int64     `json:"type,omitempty"` // of wtmpdb: 1 boot, 2 run level, 3 user
	UID     *uint32    `json:"uid,omitempty"`  // of lastlog
	User    Text       `json:"user,omitempty"` // of the others
	Login   time.Time  `json:"login"`
	Logout  *time.Time `json:"logout,omitempty"` // of wtmpdb
	TTY     Text       `json:"tty,omitempty"`
	Host    Text       `json:"host,omitempty"`
	Service Text       `json:"service,omitempty"` // that let them in
}

// fillLastLogins writes the table last_logins.
func fillLastLogins(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	found := false
	for _, file := range []struct {
		at   string
		fill func(s *sheet, f *os.File, size int64, at string) error
	}{{"/var/log/lastlog", fillLastlog}, {"/var/lib/lastlog/lastlog2.db", fillLastlog2}, {"/var/lib/wtmpdb/wtmp.db", fillWtmpdb}} {
		f, facts := t.open(file.at)
		if f == nil {
			continue
		}
		found = true
		err := file.fill(s, f, facts.Size, file.at)
		f.Close()
		if err != nil {
			return err
		}
	}
	if !found {
		s.note("/var/log/lastlog", NoteNone, "")
	}
	return nil
}

// lastlogSize is the bytes of a struct lastlog: a time, a line of 32 and a host
// of 256; the time has 64 bits on arm64.
// Source: glibc, bits/utmp.h.
func lastlogSize(arch string) (size, timeBytes int64) {
	if arch == "arm64" {
		return 296, 8
	}
	return 292, 4
}

// fillLastlog reads lastlog, whose record N is of the user with UID N. Between
// far UIDs it has holes, which are passed over.
func fillLastlog(s *sheet, f *os.File, size int64, at string) error {
	record, timeBytes := lastlogSize(runtime.GOARCH)
	buf := make([]byte, record)
	rows, tried := 0, 0
	for uid := int64(0); (uid+1)*record <= size; uid++ {
		if tried++; tried > maxLastlogs {
			s.note(at, NoteCut, fmt.Sprintf("more than %d records", maxLastlogs))
			return nil
		}
		data, err := unix.Seek(int(f.Fd()), uid*record, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // all that follows is a hole
		}
		if err == nil {
			uid = max(uid, data/record)
		}
		if (uid+1)*record > size {
			return nil
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if _, err := f.ReadAt(buf, uid*record); err != nil {
			s.failed(at, err)
			return nil
		}
		row, ok := parseLastlog(buf, timeBytes)
		if !ok || uid > 1<<32-1 {
			continue
		}
		if rows++; rows > maxLastLogins {
			s.note(at, NoteCut, fmt.Sprintf("more than %d records", maxLastLogins))
			return nil
		}
		id := uint32(uid)
		row.Record, row.UID = uid, &id
		if err := s.put(row); err != nil {
			return err
		}
	}
	return nil
}

// parseLastlog reads one struct lastlog; an empty one is of nobody.
func parseLastlog(b []byte, timeBytes int64) (row LastLogin, ok bool) {
	seconds := int64(binary.NativeEndian.Uint32(b))
	if timeBytes == 8 {
		seconds = int64(binary.NativeEndian.Uint64(b))
	}
	rest := b[timeBytes:]
	row = LastLogin{Source: "lastlog", Login: saneTime(seconds, 0), TTY: cString(rest[:32]), Host: cString(rest[32:288])}
	return row, seconds != 0 || row.TTY != "" || row.Host != ""
}

// fillLastlog2 reads the table Lastlog2: name, time in seconds, terminal, host,
// service. Source: lastlog2, lib/lastlog2.c.
func fillLastlog2(s *sheet, f *os.File, size int64, at string) error {
	return eachLogin(s, f, size, at, "Lastlog2", func(id int64, v []sqlite.Value) (LastLogin, error) {
		if len(v) < 4 {
			return LastLogin{}, fmt.Errorf("%d columns, want 4 at least", len(v))
		}
		seconds, _ := v[1].(int64)
		return LastLogin{Source: "lastlog2", Record: id, User: textOf(v[0]), Login: saneTime(seconds, 0), TTY: textOf(v[2]), Host: textOf(v[3]), Service: textAt(v, 4)}, nil
	})
}

// fillWtmpdb reads the table wtmp: ID, type, user, login and logout in
// microseconds, terminal, host, service. Source: wtmpdb, lib/sqlite.c.
func fillWtmpdb(s *sheet, f *os.File, size int64, at string) error {
	return eachLogin(s, f, size, at, "wtmp", func(id int64, v []sqlite.Value) (LastLogin, error) {
		if len(v) < 7 {
			return LastLogin{}, fmt.Errorf("%d columns, want 7 at least", len(v))
		}
		kind, _ := v[1].(int64)
		login, _ := v[3].(int64)
		row := LastLogin{Source: "wtmpdb", Record: id, Type: &kind, User: textOf(v[2]), Login: saneTime(login/1e6, login%1e6), TTY: textOf(v[5]), Host: textOf(v[6]), Service: textAt(v, 7)}
		if logout, ok := v[4].(int64); ok {
			when := saneTime(logout/1e6, logout%1e6)
			row.Logout = &when
		}
		return row, nil
	})
}

func textOf(v sqlite.Value) Text {
	text, _ := v.(string)
	return clip(text, maxPath)
}

func textAt(v []sqlite.Value, i int) Text {
	if i < len(v) {
		return textOf(v[i])
	}
	return ""
}

// eachLogin gives the rows of a database's table.
func eachLogin(s *sheet, f io.ReaderAt, size int64, at, name string, read func(id int64, v []sqlite.Value) (LastLogin, error)) error {
	if size > maxLoginDB {
		s.note(at, NoteCut, fmt.Sprintf("not read: more than %d bytes", maxLoginDB))
		return nil
	}
	db, err := sqlite.Open(f, size)
	if err != nil {
		s.failed(at, err)
		return nil
	}
	tables, err := db.Tables()
	if err != nil {
		s.failed(at, err)
	}
	for _, table := range tables {
		if !strings.EqualFold(table.Name, name) {
			continue
		}
		rows := 0
		for row, err := range db.Rows(table) {
			var login LastLogin
			if err == nil {
				login, err = read(row.ID, row.Values)
			}
			if err != nil {
				s.note(at, NoteOdd, err.Error())
				continue
			}
			if rows++; rows > maxLastLogins {
				s.note(at, NoteCut, fmt.Sprintf("more than %d rows", maxLastLogins))
				return nil
			}
			if err := s.put(login); err != nil {
				return err
			}
		}
		return nil
	}
	s.failed(at, errors.New("cannot read logins: no table "+name))
	return nil
}
