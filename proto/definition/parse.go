package definition

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// placedError knows its line in the file.
type placedError struct {
	line int
	err  error
}

func (e *placedError) Error() string { return e.err.Error() }
func (e *placedError) Unwrap() error { return e.err }

// at makes an error of a line. The innermost line is the one that counts.
func at(line int, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if placed := (*placedError)(nil); errors.As(err, &placed) {
		line = placed.line
	}
	return &placedError{line, err}
}

// document is one YAML document of a file, which starts in that line.
type document struct {
	text []byte
	line int // from 1
}

// split cuts a file at its lines that start with ---, which in YAML start a
// document wherever they stand, so that an error in one leaves the others.
func split(file []byte) []document {
	var parts []document
	start, line, first := 0, 1, 1
	for pos := 0; pos < len(file); {
		end := len(file)
		if i := bytes.IndexByte(file[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if marker(file[pos:end]) && pos > start {
			parts = append(parts, document{file[start:pos], first})
			start, first = pos, line
		}
		pos = end
		line++
	}
	return append(parts, document{file[start:], first})
}

func marker(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n"))
}

// yamlLine is how the YAML library tells a line, from 1.
var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// parse reads the definition of a document. Not found is one of comments alone.
func (d document) parse(def *Definition) (found bool, err error) {
	decoder := yaml.NewDecoder(bytes.NewReader(d.text))
	var node, second yaml.Node
	switch err := decoder.Decode(&node); {
	case err == io.EOF:
		return false, nil
	case err != nil:
		return false, d.syntax(err)
	}
	p := parser{offset: d.line - 1}
	if node.Kind != yaml.DocumentNode || len(node.Content) != 1 {
		return false, p.at(&node, "want a definition")
	}
	top := node.Content[0]
	if top.Tag == "!!null" {
		return false, nil
	}
	def.Line = p.line(top)
	if err := p.definition(top, def); err != nil {
		return false, err
	}
	if err := decoder.Decode(&second); err != io.EOF {
		return false, p.at(top, "something follows it; start each definition with a line ---")
	}
	return true, nil
}

// syntax puts the YAML library's error into the file's lines. Some of its
// errors name the line before the bad one.
func (d document) syntax(err error) error {
	text, line := err.Error(), d.line
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if n, e := strconv.Atoi(m[1]); e == nil {
			line, text = d.line-1+n, text[len(m[0]):]
		}
	}
	return at(line, "%s", "no YAML: "+strings.TrimPrefix(text, "yaml: "))
}

// parser reads nodes of one document. It goes as deep as the format does and
// no deeper, and enters no YAML alias, so that no document is larger than it is.
type parser struct{ offset int }

func (p parser) line(n *yaml.Node) int { return p.offset + max(n.Line, 1) }

func (p parser) at(n *yaml.Node, format string, args ...any) error {
	return at(p.line(n), format, args...)
}

// fields calls each key's reader. A key that has none is an error, as is one
// that stands twice.
func (p parser) fields(n *yaml.Node, what string, readers map[string]func(*yaml.Node) error, required ...string) error {
	if n.Kind != yaml.MappingNode {
		return p.at(n, "%s is %s, want keys and values", what, kindName(n))
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		read := readers[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || read == nil:
			return p.at(key, "%s has the unknown key %.80q", what, key.Value)
		case seen[key.Value]:
			return p.at(key, "%s has the key %s twice", what, key.Value)
		}
		seen[key.Value] = true
		if err := read(n.Content[i+1]); err != nil {
			return at(p.line(key), "%s: %w", key.Value, err)
		}
	}
	for _, key := range required {
		if !seen[key] {
			return p.at(n, "%s has no %s", what, key)
		}
	}
	return nil
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.AliasNode:
		return "a YAML alias, which is not taken"
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "keys and values"
	}
	return fmt.Sprintf("%.80q", n.Value)
}

// text reads one string.
func (p parser) text(to *string, limit int) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
			return p.at(n, "it is %s, want text", kindName(n))
		}
		if len(n.Value) > limit || strings.ContainsRune(n.Value, 0) {
			return p.at(n, "it has %d bytes, want %d at most and no NUL", len(n.Value), limit)
		}
		*to = n.Value
		return nil
	}
}

// list reads a list of strings.
func (p parser) list(to *[]string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode {
			return p.at(n, "it is %s, want a list", kindName(n))
		}
		if len(n.Content) > maxList {
			return p.at(n, "it has %d elements, want %d at most", len(n.Content), maxList)
		}
		for _, element := range n.Content {
			var s string
			if err := p.text(&s, maxText)(element); err != nil {
				return err
			}
			*to = append(*to, s)
		}
		return nil
	}
}

// legal accepts a key that readers still allow and nobody uses.
func legal(*yaml.Node) error { return nil }

var goodName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

func (p parser) definition(n *yaml.Node, def *Definition) error {
	var sources *yaml.Node
	err := p.fields(n, "the definition", map[string]func(*yaml.Node) error{
		"name":    p.text(&def.Name, maxName),
		"doc":     p.text(&def.Doc, 64<<10),
		"aliases": p.list(&def.Aliases),
		"urls":    p.list(&def.URLs),
		"sources": func(n *yaml.Node) error { sources = n; return nil },

		"supported_os": p.systems(&def.OS),
		"conditions":   legal, "labels": legal, "provides": legal,
	}, "name", "doc", "sources")
	if err != nil {
		return err
	}
	for _, name := range append([]string{def.Name}, def.Aliases...) {
		if len(name) > maxName || !goodName.MatchString(name) {
			return p.at(n, "%.80q is no name: want 1 to %d letters, digits and _.-", name, maxName)
		}
	}
	if sources.Kind != yaml.SequenceNode || len(sources.Content) == 0 || len(sources.Content) > maxSources {
		return p.at(sources, "sources: want a list of 1 to %d", maxSources)
	}
	for _, node := range sources.Content {
		source := Source{Line: p.line(node)}
		if err := p.source(node, &source, def); err != nil {
			return err
		}
		def.Sources = append(def.Sources, source)
	}
	return nil
}

// systems reads the names of operating systems.
func (p parser) systems(to *[]string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if err := p.list(to)(n); err != nil {
			return err
		}
		for _, name := range *to {
			if !slices.Contains(systems, name) {
				return p.at(n, "%.80q is no system: want of %s", name, strings.Join(systems, ", "))
			}
		}
		return nil
	}
}

func (p parser) source(n *yaml.Node, s *Source, def *Definition) error {
	var attributes *yaml.Node
	err := p.fields(n, "the source", map[string]func(*yaml.Node) error{
		"type":         p.text((*string)(&s.Type), maxName),
		"attributes":   func(n *yaml.Node) error { attributes = n; return nil },
		"supported_os": p.systems(&s.OS),
		"conditions":   legal, "labels": legal, "provides": legal,
	}, "type", "attributes")
	if err != nil {
		return err
	}
	for _, name := range s.OS {
		if len(def.OS) > 0 && !slices.Contains(def.OS, name) {
			return p.at(n, "the source is for %s, the definition is not", name)
		}
	}
	return p.attributes(attributes, s)
}

// attributes reads what a source of its type takes.
func (p parser) attributes(n *yaml.Node, s *Source) error {
	var separator string
	var ignored []string
	keys := map[string]func(*yaml.Node) error{}
	var required []string
	switch s.Type {
	case Group:
		keys["names"] = p.list(&s.Names)
		required = []string{"names"}
	case Command:
		keys["cmd"], keys["args"] = p.text(&s.Cmd, maxText), p.list(&s.Args)
		required = []string{"cmd", "args"}
	case FilePaths, Path, Directory:
		keys["paths"], keys["separator"] = p.list(&s.Paths), p.text(&separator, 1)
		required = []string{"paths"}
	case RegistryKey:
		keys["keys"] = p.list(&ignored)
		required = []string{"keys"}
	case RegistryValue:
		keys["key_value_pairs"] = p.pairs
		required = []string{"key_value_pairs"}
	case WMI:
		keys["query"], keys["base_object"] = legal, legal
		required = []string{"query"}
	default:
		return p.at(n, "%.80q is no type of source", s.Type)
	}
	if err := p.fields(n, "attributes", keys, required...); err != nil {
		return err
	}
	switch {
	case len(s.Names) == 0 && s.Type == Group:
		return p.at(n, "the group names nothing")
	case len(s.Paths) == 0 && slices.Contains(required, "paths"):
		return p.at(n, "there are no paths")
	case s.Type == Command && s.Cmd == "":
		return p.at(n, "the command names no program")
	}
	return nil
}

// pairs reads keys and values of a Windows registry, which are not kept.
func (p parser) pairs(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		return p.at(n, "it is %s, want a list", kindName(n))
	}
	for _, pair := range n.Content {
		var s string
		err := p.fields(pair, "the pair", map[string]func(*yaml.Node) error{"key": p.text(&s, maxText), "value": p.text(&s, maxText)}, "key", "value")
		if err != nil {
			return err
		}
	}
	return nil
}
