package locker

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// top is the folder of all evidence.
const top = "cases"

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

// join makes a key, or "" where an element could change its meaning.
func join(elements ...string) string {
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
	rest, ok := strings.CutPrefix(key, top+"/")
	if !ok || join(strings.Split(rest, "/")...) != key {
		return fmt.Errorf("key %.80q is not one under %s/", key, top)
	}
	return nil
}
