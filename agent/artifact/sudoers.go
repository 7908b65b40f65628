package artifact

import (
	"fmt"
	"path"
	"strings"
)

// Bounds of the table sudoers.
const (
	maxSudoers    = 1 << 20 // bytes of a file
	maxSudoFiles  = 1024
	maxSudoDepth  = 8 // of files that include files
	maxSudoRules  = 50_000
	maxSudoJoined = 64 << 10
)

// SudoRule is a row of the table sudoers: a line of /etc/sudoers or of a file
// that it includes. Aliases are told as they stand, and not resolved.
type SudoRule struct {
	FileFacts
	Line int `json:"line"` // where it starts, from 1
	// Kind is rule, alias, defaults or include.
	Kind string `json:"kind"`
	Who  Text   `json:"who,omitempty"` // of a rule: names, %groups, #UIDs, aliases
	Text Text   `json:"text"`          // the line, continuation lines joined
	// NoPassword and All are what a rule's text says: NOPASSWD:, and ALL as
	// its commands.
	NoPassword bool `json:"no_password,omitempty"`
	All        bool `json:"all,omitempty"`
}

// fillSudoers writes the table sudoers. It follows includes by their text, as
// sudo does, within the host's root.
func fillSudoers(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	r := &sudoReader{t: t, seen: map[string]bool{}, left: maxSudoRules}
	for _, at := range []string{"/etc/sudoers", "/usr/etc/sudoers"} {
		if err := r.file(at, 0); err != nil {
			return err
		}
	}
	if err := r.folder("/etc/sudoers.d", 0); err != nil { // also where nothing includes it
		return err
	}
	if r.left == maxSudoRules {
		s.note("/etc/sudoers", NoteNone, "")
	}
	return nil
}

type sudoReader struct {
	t    *tree
	seen map[string]bool
	left int
}

func (r *sudoReader) folder(dir string, depth int) error {
	for _, name := range r.t.names(dir) {
		if err := r.file(path.Join(dir, name), depth); err != nil {
			return err
		}
	}
	return nil
}

func (r *sudoReader) file(at string, depth int) error {
	if r.seen[at] {
		return nil
	}
	if len(r.seen) == maxSudoFiles || depth > maxSudoDepth {
		r.t.s.note(at, NoteCut, fmt.Sprintf("more than %d files, or %d deep", maxSudoFiles, maxSudoDepth))
		return nil
	}
	r.seen[at] = true
	f := r.t.file(at, maxSudoers)
	if f == nil {
		return nil
	}
	for _, row := range parseSudoers(f.data) {
		if r.left == 0 {
			r.t.s.note(at, NoteCut, fmt.Sprintf("more than %d rules", maxSudoRules))
			return nil
		}
		r.left--
		row.FileFacts = f.FileFacts
		if err := r.t.s.put(row); err != nil {
			return err
		}
		if row.Kind != "include" {
			continue
		}
		if err := r.include(string(row.Text), at, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (r *sudoReader) include(text, from string, depth int) error {
	word, target, _ := strings.Cut(text, " ")
	target = strings.Trim(strings.TrimSpace(target), `"`)
	if target == "" || len(target) > maxPath {
		return nil
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(from), target)
	}
	target = path.Clean(target)
	if strings.HasSuffix(word, "dir") {
		return r.folder(target, depth)
	}
	return r.file(target, depth)
}

// parseSudoers reads a file. Source: sudoers(5).
func parseSudoers(data []byte) []SudoRule {
	var rows []SudoRule
	joined, first, number := "", 0, 0
	for line := range strings.Lines(string(data)) {
		number++
		if joined == "" {
			first = number
		}
		line = strings.TrimRight(line, "\r\n")
		if part, more := strings.CutSuffix(line, `\`); more && len(joined) < maxSudoJoined {
			joined += part + " "
			continue
		}
		whole := strings.Join(strings.Fields(joined+line), " ")
		joined = ""
		if row, ok := parseSudoRule(whole); ok {
			row.Line = first
			rows = append(rows, row)
		}
	}
	return rows
}

func parseSudoRule(line string) (row SudoRule, ok bool) {
	word, rest, _ := strings.Cut(line, " ")
	row = SudoRule{Text: clip(line, maxPath)}
	switch {
	case word == "#include" || word == "#includedir" || word == "@include" || word == "@includedir":
		row.Kind = "include"
	case word == "" || word[0] == '#' && (len(word) == 1 || word[1] < '0' || word[1] > '9'): // #1000 is a UID
		return row, false
	case strings.HasPrefix(word, "Defaults"):
		row.Kind = "defaults"
	case word == "User_Alias" || word == "Runas_Alias" || word == "Host_Alias" || word == "Cmnd_Alias" || word == "Cmd_Alias":
		row.Kind = "alias"
	default:
		who, commands, found := strings.Cut(line, "=")
		if !found || rest == "" {
			return row, false
		}
		row.Kind = "rule"
		if at := strings.LastIndexByte(strings.TrimSpace(who), ' '); at > 0 {
			who = who[:at] // what follows is the hosts
		}
		row.Who = clip(strings.TrimSpace(who), maxPath)
		row.NoPassword = strings.Contains(commands, "NOPASSWD:")
		words := strings.FieldsFunc(commands, func(c rune) bool { return c == ' ' || c == ',' || c == ':' })
		row.All = len(words) > 0 && words[len(words)-1] == "ALL"
	}
	return row, true
}
