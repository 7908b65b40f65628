package locker

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// top is the folder of all evidence, and stateTop that of what the collector
// keeps of itself.
const top, stateTop = "cases", "state"

// maxEntries is how many journal entries a key can number in order.
const maxEntries = 999_999

var element = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// Key is where an item of a case lies: cases/CASE/INSTANCE/KIND/FILE. Where
// an element may not be part of a key it is "", which no call takes.
func Key(caseID, instance string, item evidence.Item) string {
	if !evidence.ValidName(item.Name) || item.Kind == "journal" || strings.Contains(string(item.Kind), ".") {
		return ""
	}
	return join(caseID, instance, string(item.Kind), item.FileName())
}

// ManifestKey is where the manifest's statement lies, for human eyes.
func ManifestKey(caseID, instance string) string { return join(caseID, instance, "manifest.json") }

// SignatureKey is where the manifest's envelope lies: the statement with its
// signature.
func SignatureKey(caseID, instance string) string { return join(caseID, instance, "manifest.sig") }

// JournalKey is where an entry of the case's journal lies; entries are
// numbered from 1. Keys ascend as entries do.
func JournalKey(caseID, instance string, seq int) string {
	if seq < 1 || seq > maxEntries {
		return ""
	}
	return join(caseID, instance, "journal", fmt.Sprintf("%06d.json", seq))
}

// stateTime is the time in a snapshot's key.
const stateTime = "20060102T150405Z"

// StateKey is where a node's snapshot of the collector's state lies:
// state/NODE/20261126T183000Z.db.
func StateKey(node string, taken time.Time) string {
	return under(stateTop, node, taken.UTC().Format(stateTime)+".db")
}

// StatePrefix begins the key of every snapshot.
const StatePrefix = stateTop + "/"

// StateTaken says when the snapshot under a key was taken; ok is false where
// the key is none of a snapshot.
func StateTaken(key string) (taken time.Time, ok bool) {
	name, ok := strings.CutSuffix(key[strings.LastIndexByte(key, '/')+1:], ".db")
	taken, err := time.Parse(stateTime, name)
	return taken, ok && err == nil && strings.HasPrefix(key, StatePrefix) && checkKey(key) == nil
}

// join makes a key of evidence, or "" where an element could change its
// meaning.
func join(elements ...string) string { return under(top, elements...) }

func under(top string, elements ...string) string {
	for _, e := range elements {
		if !element.MatchString(e) {
			return ""
		}
	}
	return top + "/" + strings.Join(elements, "/")
}

// checkKey refuses what none of the above makes.
func checkKey(key string) error {
	if key == "" {
		return errors.New("it has no key, as the case, the instance or the item has a name that may not be part of one")
	}
	for _, top := range []string{top, stateTop} {
		if rest, ok := strings.CutPrefix(key, top+"/"); ok && under(top, strings.Split(rest, "/")...) == key {
			return nil
		}
	}
	return fmt.Errorf("key %.80q is not one under %s/ or %s/", key, top, stateTop)
}
