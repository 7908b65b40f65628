// Package proof shows that the evidence of a case is whole and unchanged.
//
// It needs the objects, in the bucket or in a copy of it, and the public key,
// and nothing of the service: anyone can repeat it.
package proof

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// ErrNotProven says that evidence is not what its manifest says, or that it
// cannot be shown to be.
var ErrNotProven = errors.New("evidence is not proven")

// maxJournalEntry bounds one entry, in bytes: a finding and some more.
const maxJournalEntry = 4 << 20

// Objects is a place with evidence: the bucket, or a copy of it.
type Objects interface {
	evidence.Objects
	// Keys gives the keys that begin with a prefix, ascending.
	Keys(ctx context.Context, prefix string) ([]string, error)
}

// Proof is what Prove found out about one case.
type Proof struct {
	Case     string
	Manifest evidence.Manifest
	Journal  int // entries in an unbroken chain
	Report   evidence.Report
	Unlisted []string // objects beside the evidence that no manifest names
	Problems []string // of the manifest and the journal
}

// OK reports whether everything holds.
func (p Proof) OK() bool { return len(p.Problems) == 0 && p.Report.OK }

// Prove verifies the cases whose id is given, or every case there is. It
// needs nothing but the objects and the public key.
func Prove(ctx context.Context, objects Objects, key ed25519.PublicKey, caseID string) ([]Proof, error) {
	keys, err := objects.Keys(ctx, "cases/"+caseID)
	if err != nil {
		return nil, err
	}
	var proofs []Proof
	for _, k := range keys {
		dir, name := path.Split(k)
		if name != "manifest.sig" || caseID != "" && !strings.HasPrefix(k, "cases/"+caseID+"/") {
			continue
		}
		proof, err := prove(ctx, objects, key, dir, keys)
		if err != nil {
			return proofs, err
		}
		proofs = append(proofs, proof)
	}
	if len(proofs) == 0 {
		return nil, fmt.Errorf("%w: no manifest.sig under cases/%s: the case is not sealed, or this is not the evidence bucket's top", ErrNotProven, caseID)
	}
	return proofs, nil
}

// Load gives the manifest of one case. With a key it is the one that the
// key's holder signed; without one it is only what lies there, and proves
// nothing.
func Load(ctx context.Context, objects Objects, key ed25519.PublicKey, caseID string) (evidence.Manifest, error) {
	keys, err := objects.Keys(ctx, "cases/"+caseID+"/")
	if err != nil {
		return evidence.Manifest{}, err
	}
	var found []string
	for _, k := range keys {
		if path.Base(k) == "manifest.sig" {
			found = append(found, k)
		}
	}
	if len(found) != 1 {
		return evidence.Manifest{}, fmt.Errorf("%w: %d manifests under cases/%s, want one: the case is not sealed, or this is not the evidence bucket's top", ErrNotProven, len(found), caseID)
	}
	envelope, err := read(ctx, objects, found[0], custody.MaxEnvelope)
	if err != nil {
		return evidence.Manifest{}, err
	}
	if key == nil {
		return custody.Read(envelope)
	}
	manifest, _, err := custody.Open(envelope, key)
	if err != nil {
		return evidence.Manifest{}, fmt.Errorf("%w: %w", ErrNotProven, err)
	}
	return manifest, nil
}

func prove(ctx context.Context, objects Objects, key ed25519.PublicKey, dir string, keys []string) (Proof, error) {
	p := Proof{Case: strings.Split(dir, "/")[1]}
	problem := func(format string, args ...any) { p.Problems = append(p.Problems, fmt.Sprintf(format, args...)) }
	envelope, err := read(ctx, objects, dir+"manifest.sig", custody.MaxEnvelope)
	if err != nil {
		return p, err
	}
	manifest, payload, err := custody.Open(envelope, key)
	if err != nil {
		problem("manifest: %v", err)
		return p, nil // nothing that follows could be believed
	}
	p.Manifest = manifest
	if want := "cases/" + manifest.Case + "/" + manifest.Instance.ID + "/"; want != dir {
		problem("manifest of %s lies in %s", want, dir)
	}
	if plain, err := read(ctx, objects, dir+"manifest.json", custody.MaxEnvelope); err != nil || string(plain) != string(payload) {
		problem("manifest.json is not what manifest.sig signs (%v)", err)
	}
	p.Journal = proveJournal(ctx, objects, manifest, dir, keys, problem)
	p.Unlisted = unlisted(manifest, dir, keys)
	if p.Report, err = evidence.Verify(ctx, objects, manifest, evidence.Options{}); err != nil {
		return p, err
	}
	return p, p.compareRAM(ctx, objects)
}

// proveJournal walks the chain, and finds the manifest's place in it.
func proveJournal(ctx context.Context, objects Objects, m evidence.Manifest, dir string, keys []string, problem func(string, ...any)) int {
	var chain [][]byte
	for _, k := range keys {
		if !strings.HasPrefix(k, dir+"journal/") {
			continue
		}
		entry, err := read(ctx, objects, k, maxJournalEntry)
		if err != nil {
			problem("journal: %v", err)
			return len(chain)
		}
		chain = append(chain, entry)
	}
	if _, err := custody.VerifyChain(chain); err != nil {
		problem("journal: %v", err)
		return 0
	}
	if len(chain) < m.Journal.Entries {
		problem("journal has %d entries, the manifest saw %d", len(chain), m.Journal.Entries)
		return len(chain)
	}
	if head, err := custody.VerifyChain(chain[:m.Journal.Entries]); err != nil || head != m.Journal {
		problem("journal's entry %d is not the one that the manifest saw (%v)", m.Journal.Entries, err)
	}
	return len(chain)
}

// unlisted gives the objects of the case that are neither evidence in the
// manifest nor the case's own papers.
func unlisted(m evidence.Manifest, dir string, keys []string) []string {
	var out []string
	for _, k := range keys {
		known := !strings.HasPrefix(k, dir) || strings.HasPrefix(k, dir+"journal/") || k == dir+"manifest.json" || k == dir+"manifest.sig" ||
			slices.ContainsFunc(m.Items, func(i evidence.Item) bool { return i.Key == k })
		if !known {
			out = append(out, k)
		}
	}
	return out
}

func read(ctx context.Context, objects Objects, key string, limit int64) ([]byte, error) {
	r, err := objects.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", key, err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("cannot read %s: it has over %d bytes", key, limit)
	}
	return body, nil
}

// WriteText prints a proof for a person.
func (p Proof) WriteText(w io.Writer) error {
	m := p.Manifest
	if m.Case != "" {
		fmt.Fprintf(w, "case %s, instance %s, made %s\n", evidence.Plain(m.Case), evidence.Plain(m.Instance.ID), m.Made.Format("2006-01-02 15:04:05 MST"))
		fmt.Fprintf(w, "signature holds, journal of %d entries is unbroken\n", p.Journal)
	}
	if err := p.Report.WriteText(w); err != nil {
		return err
	}
	for _, gap := range m.Missing {
		fmt.Fprintf(w, "missing   %s: %s\n", gap.Kind, evidence.Plain(gap.Reason))
	}
	for _, k := range p.Unlisted {
		fmt.Fprintf(w, "unlisted  %s\n", evidence.Plain(k))
	}
	for _, problem := range p.Problems {
		fmt.Fprintf(w, "PROBLEM   %s\n", evidence.Plain(problem))
	}
	verdict := "PROVEN"
	if !p.OK() {
		verdict = "NOT PROVEN"
	}
	_, err := fmt.Fprintf(w, "%s: case %s\n", verdict, evidence.Plain(p.Case))
	return err
}
