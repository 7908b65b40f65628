package artifact

import (
	"bytes"
	"strconv"
	"strings"
)

// maxMembers bounds the members of a group's row.
const maxMembers = 1024

// User is a row of the table users: a line of /etc/passwd, and what
// /etc/shadow says of the account's age. No hash is in it; the file itself is
// among the files.
type User struct {
	Name  Text   `json:"name"`
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	GECOS Text   `json:"gecos"`
	Home  Text   `json:"home"`
	Shell Text   `json:"shell"`
	Line  int    `json:"line"` // in /etc/passwd, from 1
	// Password is empty (none is asked for), locked, or set, and where: in
	// passwd or in shadow. A scheme is named as crypt(5) numbers it: 6 is
	// SHA-512, y is yescrypt.
	Password       string `json:"password"`
	PasswordIn     string `json:"password_in"`
	PasswordScheme string `json:"password_scheme,omitempty"`
	// The ages, in days; absent where shadow says nothing. LastChange and
	// Expires count from 1970-01-01. Source: shadow(5).
	LastChange *int64 `json:"last_change,omitempty"`
	MinDays    *int64 `json:"min_days,omitempty"`
	MaxDays    *int64 `json:"max_days,omitempty"`
	WarnDays   *int64 `json:"warn_days,omitempty"`
	Inactive   *int64 `json:"inactive_days,omitempty"`
	Expires    *int64 `json:"expires,omitempty"`
}

// Group is a row of the table groups: a line of /etc/group.
type Group struct {
	Name             Text   `json:"name"`
	GID              uint32 `json:"gid"`
	Members          []Text `json:"members,omitempty"` // 1024 at most
	MembersTruncated bool   `json:"members_truncated,omitempty"`
	Line             int    `json:"line"` // in /etc/group, from 1
}

// maxAccounts bounds the lines of /etc/shadow and /etc/passwd that are kept.
const maxAccounts = 64 << 10

// fillUsers writes the table users.
func fillUsers(h *Host, s *sheet) error {
	shadows := map[Text]User{}
	err := s.lines(h.path("etc/shadow"), func(line []byte) error {
		if row, ok := parseShadow(line); ok && len(shadows) < maxAccounts {
			shadows[row.Name] = row
		}
		return nil
	})
	if err != nil {
		return err
	}
	number := 0
	return s.lines(h.path("etc/passwd"), func(line []byte) error {
		number++
		row, ok := parsePasswd(line)
		if !ok {
			s.noteLine("/etc/passwd", number, line)
			return nil
		}
		row.Line = number
		if row.PasswordIn == "shadow" {
			row.withShadow(shadows[row.Name])
		}
		return s.put(row)
	})
}

func (u *User) withShadow(shadow User) {
	if shadow.Name == "" {
		return
	}
	u.Password, u.PasswordScheme = shadow.Password, shadow.PasswordScheme
	u.LastChange, u.MinDays, u.MaxDays = shadow.LastChange, shadow.MinDays, shadow.MaxDays
	u.WarnDays, u.Inactive, u.Expires = shadow.WarnDays, shadow.Inactive, shadow.Expires
}

// noteLine records a line that has not the form of its file, by its number
// alone, as it may hold a hash. Blank lines and comments are not worth it.
func (s *sheet) noteLine(path string, number int, line []byte) {
	if trimmed := bytes.TrimSpace(line); len(trimmed) > 0 && trimmed[0] != '#' {
		s.note(path, NoteOdd, "line "+strconv.Itoa(number))
	}
}

// parsePasswd reads a line of passwd(5).
func parsePasswd(line []byte) (row User, ok bool) {
	f := strings.Split(string(line), ":")
	if len(f) != 7 || f[0] == "" {
		return row, false
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 32)
	gid, err2 := strconv.ParseUint(f[3], 10, 32)
	if err1 != nil || err2 != nil {
		return row, false
	}
	row = User{
		Name: clip(f[0], maxWord), UID: uint32(uid), GID: uint32(gid),
		GECOS: clip(f[4], maxPath), Home: clip(f[5], maxPath), Shell: clip(f[6], maxPath),
		PasswordIn: "passwd",
	}
	row.Password, row.PasswordScheme = passwordState(f[1])
	if f[1] == "x" {
		row.Password, row.PasswordIn = "", "shadow"
	}
	return row, true
}

// parseShadow reads a line of shadow(5).
func parseShadow(line []byte) (row User, ok bool) {
	f := strings.Split(string(line), ":")
	if len(f) != 9 || f[0] == "" {
		return row, false
	}
	row.Name = clip(f[0], maxWord)
	row.Password, row.PasswordScheme = passwordState(f[1])
	for i, field := range []**int64{&row.LastChange, &row.MinDays, &row.MaxDays, &row.WarnDays, &row.Inactive, &row.Expires} {
		if n, err := strconv.ParseInt(f[2+i], 10, 64); err == nil {
			*field = &n
		}
	}
	return row, true
}

// passwordState says of a password field what may be told.
func passwordState(field string) (state, scheme string) {
	switch {
	case field == "":
		return "empty", ""
	case field[0] == '!' || field[0] == '*':
		return "locked", ""
	}
	if rest, ok := strings.CutPrefix(field, "$"); ok {
		if id, _, ok := strings.Cut(rest, "$"); ok && len(id) <= 8 && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz-") == "" {
			scheme = id
		}
	}
	return "set", scheme
}

// fillGroups writes the table groups.
func fillGroups(h *Host, s *sheet) error {
	number := 0
	return s.lines(h.path("etc/group"), func(line []byte) error {
		number++
		row, ok := parseGroup(line)
		if !ok {
			s.noteLine("/etc/group", number, line)
			return nil
		}
		row.Line = number
		return s.put(row)
	})
}

// parseGroup reads a line of group(5).
func parseGroup(line []byte) (row Group, ok bool) {
	f := strings.Split(string(line), ":")
	if len(f) != 4 || f[0] == "" {
		return row, false
	}
	gid, err := strconv.ParseUint(f[2], 10, 32)
	if err != nil {
		return row, false
	}
	row = Group{Name: clip(f[0], maxWord), GID: uint32(gid)}
	for member := range strings.SplitSeq(f[3], ",") {
		if member == "" {
			continue
		}
		if len(row.Members) == maxMembers {
			row.MembersTruncated = true
			break
		}
		row.Members = append(row.Members, clip(member, maxWord))
	}
	return row, true
}
