package artifact

import (
	"time"

	"github.com/quicklime-ir/quicklime/proto/definition"
)

// Definition is what to collect of one artifact on this host: its sources that
// serve on Linux, brought together.
type Definition struct {
	Name      string     // as in the record's source
	Doc       string     // what it holds, in a sentence
	Paths     []string   // patterns of files that are read
	Locations []string   // patterns of places that are only looked at
	Commands  [][]string // programs and their arguments; only the agent's own are run
	// FileBytes and TotalBytes bound one file, and all of this definition's
	// files; 0 leaves it to Limits.
	FileBytes, TotalBytes int64
	// Public leaves private keys where they are: such a file is recorded as
	// seen, and not taken.
	Public bool
}

// Bounds of folders that anyone may write to.
const (
	anyonesFile  = 10 << 20
	anyonesTotal = 1 << 30
)

// limits holds what the format of the definitions has no word for, by the name
// of an embedded one.
var limits = map[string]struct {
	fileBytes, totalBytes int64
	public                bool
}{
	"SharedMemory":           {anyonesFile, anyonesTotal, false},
	"TemporaryFiles":         {anyonesFile, anyonesTotal, false},
	"CoreDumps":              {64 << 20, anyonesTotal, false},
	"ShellHistories":         {64 << 20, 0, false},
	"ContainerdState":        {anyonesFile, anyonesTotal, false},
	"DockerState":            {anyonesFile, anyonesTotal, false},
	"ContainerLogs":          {256 << 20, 0, false},
	"SSHUsers":               {anyonesFile, 0, true},
	"SSHServer":              {anyonesFile, 0, true},
	"KubernetesNode":         {anyonesFile, 0, true},
	"KubernetesControlPlane": {anyonesFile, 0, true},
	"WebServerSettings":      {anyonesFile, anyonesTotal, true},
	"StartFiles":             {anyonesFile, 0, false},
	"UserStartFiles":         {anyonesFile, 0, false},
	"Initramfs":              {anyonesFile, 0, false},
}

// Definitions lists what is collected without being told more.
func Definitions() []Definition {
	defs := definitionsOf(definition.Embedded())
	for i := range defs {
		l := limits[defs[i].Name]
		defs[i].FileBytes, defs[i].TotalBytes, defs[i].Public = l.fileBytes, l.totalBytes, l.public
	}
	return defs
}

// Added reads files that add to Definitions. A definition that is broken is
// recorded, and the others go on.
func Added(files []definition.File, rec *Record) []Definition {
	if len(files) == 0 {
		return nil
	}
	set := definition.Load(definition.Embedded(), files)
	for _, refused := range set.Refused {
		now := time.Now()
		rec.Add(Entry{Source: "definitions", Path: clip(refused.File, maxPath), Error: clip(refused.Error(), maxPath), Started: now, Ended: now})
	}
	return definitionsOf(set)
}

// definitionsOf gives a set's definitions as far as they say where to look.
func definitionsOf(set *definition.Set) []Definition {
	var out []Definition
	for _, from := range set.Linux() {
		def := Definition{Name: from.Name, Doc: from.Doc}
		for _, source := range from.Linux() {
			switch source.Type {
			case definition.FilePaths:
				def.Paths = append(def.Paths, source.Paths...)
			case definition.Path, definition.Directory:
				def.Locations = append(def.Locations, source.Paths...)
			case definition.Command:
				def.Commands = append(def.Commands, append([]string{source.Cmd}, source.Args...))
			}
		}
		if len(def.Paths)+len(def.Locations)+len(def.Commands) > 0 {
			out = append(out, def)
		}
	}
	return out
}
