package proto_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/quicklime-ir/quicklime/"

// plan names every room of the house and the rooms that it may enter. A new
// room or a new arrow is a decision: it is taken here, in sight of everyone.
// The doors, agent and collector, may enter every room on their own side.
var plan = map[string][]string{
	"proto/definition":            {},
	"proto/iomem":                 {"proto/lime"},
	"proto/lime":                  {},
	"proto/seekable":              {},
	"proto/evidence":              {"proto/lime", "proto/seekable"},
	"proto/identity":              {},
	"proto/identity/identitytest": {"proto/identity"}, // for tests
	"proto/wire/v1":               {"proto/evidence", "proto/lime", "proto/seekable"},

	"agent/acquire": {"agent/arena", "agent/artifact", "agent/memory", "agent/pack", "agent/symbols", "agent/throttle", "agent/upload",
		"proto/definition", "proto/evidence", "proto/lime", "proto/seekable"},
	"agent/arena": {},
	"agent/artifact": {"agent/artifact/command", "agent/artifact/container", "agent/artifact/crontab", "agent/artifact/history",
		"agent/artifact/journal", "agent/artifact/netfilter", "agent/artifact/netlink", "agent/artifact/packages",
		"agent/artifact/rtnetlink", "agent/artifact/sockdiag", "agent/artifact/sqlite", "agent/artifact/unit", "proto/definition"},
	"agent/artifact/container": {},
	"agent/artifact/command":   {},
	"agent/artifact/crontab":   {},
	"agent/artifact/history":   {},
	"agent/artifact/journal":   {},
	"agent/artifact/netfilter": {"agent/artifact/netlink"},
	"agent/artifact/netlink":   {},
	"agent/artifact/packages":  {},
	"agent/artifact/rtnetlink": {"agent/artifact/netlink"},
	"agent/artifact/sockdiag":  {"agent/artifact/netlink"},
	"agent/artifact/sqlite":    {},
	"agent/artifact/unit":      {},
	"agent/memory":             {"proto/evidence", "proto/iomem", "proto/lime"},
	"agent/pack":               {"proto/evidence", "proto/lime", "proto/seekable"},
	"agent/preflight":          {"agent/memory", "proto/iomem"},
	"agent/session":            {"agent/pack", "agent/throttle", "agent/upload", "proto/evidence", "proto/wire/v1"},
	"agent/symbols":            {},
	"agent/throttle":           {},
	"agent/upload":             {"agent/pack", "agent/throttle"},

	"agent/memory/memorytest": {"agent/memory", "proto/evidence", "proto/lime"}, // for tests

	"collector/backup":   {"collector/locker", "collector/store"},
	"collector/casefile": {"collector/finding", "proto/evidence"},
	"collector/cloud":    {},
	"collector/custody":  {"proto/evidence"},
	"collector/desk":     {"collector/casefile", "collector/docket", "collector/finding", "proto/evidence", "proto/wire/v1"},
	"collector/docket": {"collector/casefile", "collector/custody", "collector/finding", "collector/locker", "collector/store",
		"proto/evidence"},
	"collector/export":      {"proto/evidence", "proto/lime"},
	"collector/finding":     {},
	"collector/fleet":       {"collector/gate", "collector/ledger", "collector/locker", "collector/store", "proto/evidence", "proto/identity", "proto/wire/v1"},
	"collector/health":      {},
	"collector/gate":        {},
	"collector/intake":      {"collector/finding", "collector/gate"},
	"collector/isf":         {},
	"collector/isf/isftest": {}, // for tests
	"collector/ledger":      {"collector/locker", "collector/store", "proto/evidence", "proto/lime", "proto/seekable"},
	"collector/locker":      {"proto/evidence"},
	"collector/metrics":     {"collector/casefile"},
	"collector/notify":      {},
	"collector/playbook":    {"collector/casefile", "collector/store"},
	"collector/proof":       {"collector/custody", "proto/evidence", "proto/iomem", "proto/lime"},
	"collector/timeline":    {"collector/casefile", "collector/custody", "collector/proof", "proto/evidence"},
	"collector/steps": {"collector/casefile", "collector/cloud", "collector/custody", "collector/fleet", "collector/ledger",
		"collector/locker", "collector/notify", "collector/playbook", "proto/evidence", "proto/wire/v1"},
	"collector/store":           {},
	"collector/store/etcd":      {"collector/store"},
	"collector/store/storetest": {"collector/store"}, // for tests
	"collector/unpack":          {"collector/proof", "proto/evidence"},
}

// forbidden gives what a side of the house may never link, and why.
var forbidden = map[string]map[string]string{
	"agent": {
		"github.com/aws/aws-sdk-go-v2/service": "the agent holds no AWS credentials and calls no AWS API",
		"os/exec":                              "the agent runs no command that it is sent",
	},
}

// excused gives the one room that may import what is forbidden to its side.
// The packet filter's rules, as the host's own tools tell them, are to be had
// by running these alone; which may run is a list in that room's source.
var excused = map[string]string{"agent/artifact/command": "os/exec"}

// TestFloorPlan holds the imports of every file against the plan.
func TestFloorPlan(t *testing.T) {
	seen := map[string]bool{}
	walk(t, func(room, file string, imports []string) {
		seen[room] = true
		for _, path := range imports {
			for prefix, why := range forbidden[strings.Split(room, "/")[0]] {
				if excused[room] == path {
					continue
				}
				if path == prefix || strings.HasPrefix(path, prefix+"/") {
					t.Errorf("%s imports %s: %s", file, path, why)
				}
			}
			to, ours := strings.CutPrefix(path, module)
			switch {
			case !ours:
			case room == "agent" || room == "collector": // the doors
				if side := strings.Split(to, "/")[0]; side != room && side != "proto" {
					t.Errorf("%s imports %s: a door opens to its own side and to proto alone", file, to)
				}
			case !slices.Contains(plan[room], to):
				t.Errorf("%s imports %s: this arrow is not on the plan of %s", file, to, room)
			}
		}
		if _, ok := plan[room]; !ok && room != "agent" && room != "collector" {
			t.Errorf("%s: the room %s is not on the plan", file, room)
		}
	})
	for room := range maps.Keys(plan) {
		if !seen[room] {
			t.Errorf("the plan has a room %s, the house has not", room)
		}
	}
}

// TestEveryRoomSaysWhatItIsFor wants a doc comment that begins as gofmt's
// documentation does.
func TestEveryRoomSaysWhatItIsFor(t *testing.T) {
	documented := map[string]bool{}
	walk(t, func(room, file string, _ []string) {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		doc := parsed.Doc.Text()
		documented[room] = documented[room] || strings.HasPrefix(doc, "Package ") || strings.HasPrefix(doc, "Command ")
	})
	for room, ok := range documented {
		if !ok {
			t.Errorf("%s has no doc comment that says what it is for", room)
		}
	}
}

// walk visits the program's own files; tests may look where they like, and
// what lies in testdata is theirs.
func walk(t *testing.T, visit func(room, file string, imports []string)) {
	t.Helper()
	top, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, side := range []string{"proto", "agent", "collector"} {
		err := filepath.WalkDir(filepath.Join(top, side), func(file string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() && entry.Name() == "testdata" {
				return filepath.SkipDir
			}
			if err != nil || entry.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
				return err
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			var imports []string
			for _, spec := range parsed.Imports {
				imports = append(imports, strings.Trim(spec.Path.Value, `"`))
			}
			room, err := filepath.Rel(top, filepath.Dir(file))
			visit(filepath.ToSlash(room), file, imports)
			return err
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}
