package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"

	"github.com/quicklime-ir/quicklime/proto/definition"
)

// artifactFlags add to what is collected of files.
type artifactFlags struct {
	Artifacts string `help:"Folder of definitions (*.yaml, in the format of ForensicArtifacts) that are collected beside the agent's own." type:"path"`
}

// files reads the folder. Definitions that are broken are logged, and the others
// go on.
func (f artifactFlags) files(log *slog.Logger) ([]definition.File, error) {
	if f.Artifacts == "" {
		return nil, nil
	}
	files, err := definition.ReadDir(f.Artifacts)
	if err != nil {
		return nil, err
	}
	for _, refused := range definition.Load(definition.Embedded(), files).Refused {
		log.Warn("artifact definition refused", "reason", refused.Error())
	}
	return files, nil
}

type artifactsCmd struct {
	List  listCmd  `cmd:"" help:"List what is collected, in its order."`
	Show  showCmd  `cmd:"" help:"Show one definition, and what it brings along."`
	Check checkCmd `cmd:"" help:"Check a folder of definitions; ends with: loaded N, refused M."`
}

type listCmd struct{ artifactFlags }

// set gives the agent's definitions, and those of the folder, if any.
func (f artifactFlags) set(log *slog.Logger) (own, more *definition.Set, err error) {
	files, err := f.files(log)
	own = definition.Embedded()
	return own, definition.Load(own, files), err
}

// Run prints a line for each definition: its name, and what it holds.
func (c *listCmd) Run(out io.Writer, log *slog.Logger) error {
	own, more, err := c.set(log)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, def := range append(own.Linux(), more.Linux()...) {
		doc, _, _ := strings.Cut(strings.TrimSpace(def.Doc), "\n")
		fmt.Fprintf(w, "%s\t%s\n", def.Name, printable(doc))
	}
	return w.Flush()
}

type showCmd struct {
	artifactFlags
	Name string `arg:"" help:"Name or alias, in any case."`
}

// Run prints a definition and, of a group, its members.
func (c *showCmd) Run(out io.Writer, log *slog.Logger) error {
	_, more, err := c.set(log)
	if err != nil {
		return err
	}
	def := more.Find(c.Name)
	if def == nil {
		return fmt.Errorf("cannot show %.200q: no definition has this name; see quicklime-agent artifacts list", c.Name)
	}
	var b strings.Builder
	show(&b, def)
	for _, member := range more.Expand(def) {
		if member != def {
			show(&b, member)
		}
	}
	_, err = io.WriteString(out, b.String())
	return err
}

// show writes what one definition says of Linux.
func show(b *strings.Builder, def *definition.Definition) {
	fmt.Fprintf(b, "%s (%s:%d)\n", def.Name, printable(def.File), def.Line)
	for line := range strings.Lines(def.Doc) {
		fmt.Fprintf(b, "  %s\n", printable(strings.TrimRight(line, "\n")))
	}
	sources := def.Linux()
	if len(sources) == 0 {
		b.WriteString("  nothing of it is on Linux\n")
	}
	for _, source := range sources {
		what := append(append([]string{}, source.Paths...), source.Names...)
		if source.Type == definition.Command {
			what = []string{strings.Join(append([]string{source.Cmd}, source.Args...), " ")}
		}
		for _, element := range what {
			fmt.Fprintf(b, "  %-14s  %s\n", source.Type, printable(element))
		}
	}
}

// printable takes their meaning from control characters, for a terminal.
func printable(s string) string {
	quoted := fmt.Sprintf("%+q", s)
	if quoted[1:len(quoted)-1] == s || !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
		return s
	}
	return quoted
}

type checkCmd struct {
	Dir string `arg:"" help:"Folder of definitions (*.yaml)." type:"path"`
}

// Run names each definition that is refused, with its file, line and reason.
func (c *checkCmd) Run(out io.Writer) error {
	files, err := definition.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	set := definition.Load(definition.Embedded(), files)
	for _, refused := range set.Refused {
		if _, err := fmt.Fprintln(out, printable(refused.Error())); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(out, "loaded %d, refused %d\n", len(set.All()), len(set.Refused)); err != nil {
		return err
	}
	if len(set.Refused) > 0 {
		return fmt.Errorf("%d definitions of %s cannot be used", len(set.Refused), c.Dir)
	}
	return nil
}
