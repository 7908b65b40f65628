// Package definition reads artifact definitions: YAML that says which files,
// places and commands make up one kind of evidence.
//
// It exists so that what is collected is data that a responder can read, check
// and add to, in the format that other tools share. The format is that of
// ForensicArtifacts ("Artifact definition format and style guide"). Definitions
// come from outside, so everything here is bounded, and what is broken is refused
// by file and line while the rest goes on: by the collector before it orders
// them, and by the agent before it uses them. Nothing here touches the host.
package definition

import (
	"fmt"
	"slices"
	"strings"
)

// Type is a kind of source.
type Type string

// The kinds of sources. Those of Windows are read and never used.
const (
	Group         Type = "ARTIFACT_GROUP" // Names
	Command       Type = "COMMAND"        // Cmd and Args
	Directory     Type = "DIRECTORY"      // Paths; an old name of Path
	FilePaths     Type = "FILE"           // Paths, which are read
	Path          Type = "PATH"           // Paths, which are only looked at
	RegistryKey   Type = "REGISTRY_KEY"
	RegistryValue Type = "REGISTRY_VALUE"
	WMI           Type = "WMI"
)

// linux is the name of the system that is collected from.
const linux = "Linux"

// systems are those that supported_os may name.
var systems = []string{"Android", "Darwin", "ESXi", "iOS", linux, "Windows"}

// Definition is one artifact.
type Definition struct {
	Name    string // at most 128 letters, digits and _.-
	Doc     string
	Aliases []string // other names
	URLs    []string
	OS      []string // systems it is for; none: all
	Sources []Source // one at least
	File    string   // where it stands
	Line    int      // and in which line of it, from 1
}

// Source says where a part of an artifact is.
type Source struct {
	Type  Type
	OS    []string // as the definition's, which none inherits
	Paths []string // patterns, of FILE, PATH and DIRECTORY
	Names []string // of an ARTIFACT_GROUP
	Cmd   string   // of a COMMAND: its program
	Args  []string // and what it is given
	Line  int
}

// linux reports whether a source serves on Linux.
func (s *Source) linux(def *Definition) bool {
	systems := s.OS
	if len(systems) == 0 {
		systems = def.OS
	}
	if s.Type == RegistryKey || s.Type == RegistryValue || s.Type == WMI {
		return false
	}
	return len(systems) == 0 || slices.Contains(systems, linux)
}

// Linux gives the sources that serve on Linux.
func (d *Definition) Linux() []Source {
	var out []Source
	for i := range d.Sources {
		if d.Sources[i].linux(d) {
			out = append(out, d.Sources[i])
		}
	}
	return out
}

// Refusal says why a definition, or a file of them, is not used.
type Refusal struct {
	File   string
	Line   int    // from 1; 0 is the whole file
	Name   string // of the definition, "" where it is not known
	Reason string
}

// Error gives FILE:LINE: cannot use NAME: reason.
func (r Refusal) Error() string {
	name := r.Name
	if name == "" {
		name = "definition"
	}
	return fmt.Sprintf("%s:%d: cannot use %s: %s", r.File, r.Line, name, r.Reason)
}

// Set is definitions whose names are unique, aliases too, whatever their case.
type Set struct {
	Refused []Refusal

	defs  []*Definition
	names map[string]*Definition // by lower-case name and alias
	base  *Set
}

// All gives the definitions in the order they stand in.
func (s *Set) All() []*Definition { return s.defs }

// Find gives the definition of a name or alias, whatever its case, nil where
// there is none. Those of the set come before those of its base.
func (s *Set) Find(name string) *Definition {
	for ; s != nil; s = s.base {
		if def := s.names[strings.ToLower(name)]; def != nil {
			return def
		}
	}
	return nil
}

// Linux gives the set's definitions that reach Linux, each once, in their
// order. A group brings its members to its own place.
func (s *Set) Linux() []*Definition {
	var out []*Definition
	seen := map[*Definition]bool{}
	for _, def := range s.defs {
		for _, part := range s.Expand(def) {
			if !seen[part] && s.own(part) {
				seen[part] = true
				out = append(out, part)
			}
		}
	}
	return out
}

// own reports whether a definition is the set's, not its base's.
func (s *Set) own(def *Definition) bool { return s.names[strings.ToLower(def.Name)] == def }

// Expand gives a definition and, where it is a group, its members and theirs,
// each once, as far as they reach Linux.
func (s *Set) Expand(def *Definition) []*Definition {
	var out []*Definition
	seen := map[*Definition]bool{}
	var visit func(*Definition)
	visit = func(def *Definition) {
		sources := def.Linux()
		if seen[def] || len(sources) == 0 {
			return
		}
		seen[def] = true
		out = append(out, def)
		for _, source := range sources {
			for _, name := range source.Names {
				if member := s.Find(name); member != nil {
					visit(member)
				}
			}
		}
	}
	visit(def)
	return out
}
