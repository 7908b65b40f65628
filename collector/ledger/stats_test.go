package ledger

import (
	"testing"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// TestStats: what is refused, stored already or closed already is not counted
// again.
func TestStats(t *testing.T) {
	l, p := newLedger()
	o := open(t, l, image())
	for n := range int32(2) {
		part := imagePart(n+1, "x")
		grant(t, l, o.ID, part)
		p.put("upload-1", part)
	}
	if _, stored, err := l.Grant(t.Context(), caseID, o.ID, imagePart(1, "x")); !stored || err != nil {
		t.Fatal(stored, err)
	}
	if _, _, err := l.Grant(t.Context(), caseID, o.ID, imagePart(1, "y")); err == nil {
		t.Fatal("another hash was granted")
	}
	for range 2 {
		if _, err := l.Close(t.Context(), caseID, o.ID, 2, ""); err != nil {
			t.Fatal(err)
		}
	}
	want := Stats{GrantedParts: 2, GrantedBytes: 2 * evidence.MinPartBytes, StoredBytes: 2 * evidence.MinPartBytes}
	if got := l.Stats(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
