package definition

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Bounds of what is loaded.
const (
	MaxFileBytes   = 1 << 20 // of one file
	maxFiles       = 512     // of a folder
	maxFolderBytes = 16 << 20
	maxDefinitions = 8192
	maxSources     = 256  // of one definition
	maxList        = 4096 // elements of one list
	maxText        = 4096 // bytes of one path, name or argument
	maxName        = 128
	maxNesting     = 64 // groups within groups
)

// File is a file of definitions.
type File struct {
	Name string // for messages alone
	YAML []byte
}

//go:embed embedded/*.yaml
var embedded embed.FS

// Embedded gives the agent's own definitions, the most volatile first, which is
// the order to collect them in.
func Embedded() *Set {
	var files []File
	names, err := fs.Glob(embedded, "embedded/*.yaml")
	for _, name := range names {
		content, e := embedded.ReadFile(name)
		err = errors.Join(err, e)
		files = append(files, File{path.Base(name), content})
	}
	if err != nil {
		panic(err) // the binary holds them, so this cannot be
	}
	return Load(nil, files)
}

// ReadDir reads each file of a folder whose name ends in .yaml, in the order of
// their names. It is an error when one cannot be read, is too large, or there
// is none.
func ReadDir(dir string) ([]File, error) {
	names, err := filepath.Glob(filepath.Join(escape(dir), "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("cannot list definitions in %s: %w", dir, err)
	}
	if len(names) == 0 || len(names) > maxFiles {
		return nil, fmt.Errorf("cannot read definitions in %s: %d files end in .yaml, want 1 to %d", dir, len(names), maxFiles)
	}
	var files []File
	left := maxFolderBytes
	for _, name := range names {
		content, err := readFile(name, min(left, MaxFileBytes))
		if err != nil {
			return nil, fmt.Errorf("cannot read definitions: %w", err)
		}
		left -= len(content)
		files = append(files, File{filepath.Base(name), content})
	}
	return files, nil
}

// escape takes their meaning from a folder's *, ? and [.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

func readFile(name string, limit int) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(content) > limit {
		err = fmt.Errorf("%s is too large: want %d bytes at most", name, limit)
	}
	return content, err
}

// Load reads files into a set. Groups may also name definitions of base, which
// may be nil.
func Load(base *Set, files []File) *Set {
	s := &Set{names: map[string]*Definition{}, base: base}
	for _, file := range files {
		if len(file.YAML) > MaxFileBytes {
			s.refuse(&Definition{File: file.Name}, fmt.Errorf("the file has %d bytes, want %d at most", len(file.YAML), MaxFileBytes))
			continue
		}
		for _, part := range split(file.YAML) {
			if len(s.defs) == maxDefinitions {
				s.refuse(&Definition{File: file.Name, Line: part.line}, fmt.Errorf("there are %d definitions before it, and no more are taken", maxDefinitions))
				break
			}
			s.read(file.Name, part)
		}
	}
	s.resolve()
	return s
}

// read takes in the definition of one document.
func (s *Set) read(file string, part document) {
	def := &Definition{File: file, Line: part.line}
	found, err := part.parse(def)
	if err == nil && !found {
		return
	}
	if err == nil {
		err = checkPaths(def)
	}
	if err == nil {
		err = s.checkNames(def)
	}
	if err != nil {
		s.refuse(def, err)
		return
	}
	s.defs = append(s.defs, def)
	for _, name := range append([]string{def.Name}, def.Aliases...) {
		s.names[strings.ToLower(name)] = def
	}
}

func checkPaths(def *Definition) error {
	for _, source := range def.Linux() {
		for _, p := range source.Paths {
			if _, err := ParsePattern(p); err != nil {
				return at(source.Line, "%w", err)
			}
		}
	}
	return nil
}

func (s *Set) checkNames(def *Definition) error {
	for _, name := range append([]string{def.Name}, def.Aliases...) {
		if other := s.names[strings.ToLower(name)]; other != nil {
			return fmt.Errorf("the name %s is taken: %s:%d", name, other.File, other.Line)
		}
	}
	return nil
}

// refuse keeps why a definition is not used, with the line that err knows.
func (s *Set) refuse(def *Definition, err error) {
	r := Refusal{File: def.File, Line: def.Line, Name: def.Name, Reason: err.Error()}
	var placed *placedError
	if errors.As(err, &placed) {
		r.Line = placed.line
	}
	s.Refused = append(s.Refused, r)
}

// resolve refuses groups that name what is not there, or themselves. As that
// takes their names away too, it goes on until all others hold.
func (s *Set) resolve() {
	for again := true; again; {
		again = false
		depth := map[*Definition]int{}
		var kept []*Definition
		var broken []*Definition
		for _, def := range s.defs {
			if _, err := s.nesting(def, depth); err != nil {
				s.refuse(def, err)
				broken = append(broken, def)
				continue
			}
			kept = append(kept, def)
		}
		for _, def := range broken {
			again = true
			for _, name := range append([]string{def.Name}, def.Aliases...) {
				delete(s.names, strings.ToLower(name))
			}
		}
		s.defs = kept
	}
}

// Marks of nesting in its table.
const (
	open   = -1 // the group is being looked at: who meets it again is in a circle
	failed = -2
)

// nesting says how many groups lie within each other below a definition.
func (s *Set) nesting(def *Definition, depth map[*Definition]int) (int, error) {
	if d, known := depth[def]; known && d >= 0 {
		return d, nil
	}
	if depth[def] == open {
		return 0, fmt.Errorf("the group %s contains itself", def.Name)
	}
	depth[def] = open
	deepest := 0
	for i := range def.Sources {
		for _, name := range def.Sources[i].Names {
			member := s.Find(name)
			if member == nil {
				depth[def] = failed
				return 0, at(def.Sources[i].Line, "it names %s, which is not defined", name)
			}
			d, err := s.nesting(member, depth)
			if err == nil && d >= maxNesting {
				err = fmt.Errorf("groups lie more than %d deep in each other", maxNesting)
			}
			if err != nil {
				depth[def] = failed
				return 0, at(def.Sources[i].Line, "member %s: %w", name, err)
			}
			deepest = max(deepest, d+1)
		}
	}
	depth[def] = deepest
	return deepest, nil
}
