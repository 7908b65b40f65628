package custody

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// MaxEnvelope bounds a sealed manifest, in bytes.
const MaxEnvelope = 64 << 20

const (
	payloadType   = "application/vnd.in-toto+json"    // in-toto, "Envelope"
	statementType = "https://in-toto.io/Statement/v1" // in-toto, "Statement"
	composite     = "sha256Composite"                 // the name of evidence.Composite in a digest set
)

// statement is an in-toto statement, version 1, about the objects of one
// manifest.
type statement struct {
	Type          string            `json:"_type"`
	Subject       []subject         `json:"subject"`
	PredicateType string            `json:"predicateType"`
	Predicate     evidence.Manifest `json:"predicate"`
}

// subject is one object: its key and its hash. An object of one part has the
// hash of its bytes ("sha256", hex); one of several parts has the hash that
// S3 keeps for it ("sha256Composite", as evidence.Composite writes it).
type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Seal signs a manifest. The envelope is DSSE, its payload an in-toto
// statement whose predicate is the manifest and whose subjects are the
// stored objects. It refuses a manifest that contradicts itself or has open
// items, and gives no envelope that Open would refuse.
func Seal(ctx context.Context, signer Signer, manifest evidence.Manifest) ([]byte, error) {
	envelope, err := sign(ctx, signer, manifest)
	if err != nil {
		return nil, fmt.Errorf("cannot seal manifest of case %s: %w", manifest.Case, err)
	}
	if _, _, err := Open(envelope, signer.Public()); err != nil {
		return nil, fmt.Errorf("cannot seal manifest of case %s: the signer signs, but not with its key: %w", manifest.Case, err)
	}
	return envelope, nil
}

func sign(ctx context.Context, signer Signer, manifest evidence.Manifest) ([]byte, error) {
	about, err := subjects(manifest)
	if err != nil {
		return nil, err
	}
	payload, err := json.Marshal(statement{statementType, about, evidence.ManifestType, manifest})
	if err != nil {
		return nil, err
	}
	if base64.StdEncoding.EncodedLen(len(payload)) > MaxEnvelope-1024 {
		return nil, fmt.Errorf("it has %d bytes, and its envelope may have %d", len(payload), MaxEnvelope)
	}
	envelopes, err := dsse.NewEnvelopeSigner(signer)
	if err != nil {
		return nil, err
	}
	envelope, err := envelopes.SignPayload(ctx, payloadType, payload)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope)
}

// Open verifies an envelope and only then reads it. It gives the manifest
// and the payload that was signed, byte for byte. An error is ErrBroken. An
// envelope has one spelling and one signature, so any changed bit is found.
func Open(envelope []byte, public ed25519.PublicKey) (evidence.Manifest, []byte, error) {
	payload, err := verify(envelope, public)
	if err != nil {
		return evidence.Manifest{}, nil, fmt.Errorf("%w: cannot open envelope: %w", ErrBroken, err)
	}
	manifest, err := parse(payload)
	if err != nil {
		return evidence.Manifest{}, nil, fmt.Errorf("%w: the envelope is signed, but %w", ErrBroken, err)
	}
	return manifest, payload, nil
}

// Read reads an envelope and asks nobody's key. What it gives is what someone
// claims; only Open says who. An error is ErrBroken.
func Read(envelope []byte) (evidence.Manifest, error) {
	payload, err := claimed(envelope)
	if err != nil {
		return evidence.Manifest{}, fmt.Errorf("%w: cannot read envelope: %w", ErrBroken, err)
	}
	manifest, err := parse(payload)
	if err != nil {
		return evidence.Manifest{}, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return manifest, nil
}

// claimed gives the payload of an envelope, whoever signed it.
func claimed(envelope []byte) ([]byte, error) {
	var e dsse.Envelope
	if len(envelope) > MaxEnvelope {
		return nil, fmt.Errorf("it has %d bytes, want %d at most", len(envelope), MaxEnvelope)
	}
	if err := json.Unmarshal(envelope, &e); err != nil {
		return nil, fmt.Errorf("it is no DSSE envelope: %w", err)
	}
	return decode(e.Payload)
}

// verify gives the payload of an envelope that the key's holder signed.
func verify(envelope []byte, public ed25519.PublicKey) ([]byte, error) {
	if len(envelope) > MaxEnvelope {
		return nil, fmt.Errorf("it has %d bytes, want %d at most", len(envelope), MaxEnvelope)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		return nil, fmt.Errorf("it is no DSSE envelope: %w", err)
	}
	if again, err := json.Marshal(e); err != nil || !bytes.Equal(again, envelope) {
		return nil, errors.New("it is not spelled as envelopes are")
	}
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("its payload type is %.80q, want %q", e.PayloadType, payloadType)
	}
	if len(e.Signatures) != 1 {
		return nil, fmt.Errorf("it has %d signatures, want 1", len(e.Signatures))
	}
	if len(public) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("the given key has %d bytes, want %d", len(public), ed25519.PublicKeySize)
	}
	id, err := keyID(public)
	if err != nil {
		return nil, err
	}
	if e.Signatures[0].KeyID != id {
		return nil, fmt.Errorf("it is signed with key %.80q, and the given key is %s", e.Signatures[0].KeyID, id)
	}
	payload, err := decode(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("cannot decode its payload: %w", err)
	}
	signature, err := decode(e.Signatures[0].Sig)
	if err != nil {
		return nil, fmt.Errorf("cannot decode its signature: %w", err)
	}
	if !ed25519.Verify(public, dsse.PAE(e.PayloadType, payload), signature) {
		return nil, errors.New("its signature does not hold: it was changed, or another key signed it")
	}
	return payload, nil
}

// decode reads base64 in the one spelling that encoding gives it.
func decode(text string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err == nil && base64.StdEncoding.EncodeToString(b) != text {
		err = errors.New("base64 that is not spelled as encoders do")
	}
	return b, err
}

// parse reads a statement and holds its subjects against its manifest.
func parse(payload []byte) (evidence.Manifest, error) {
	var s statement
	if err := json.Unmarshal(payload, &s); err != nil {
		return evidence.Manifest{}, fmt.Errorf("its payload is no statement: %w", err)
	}
	if s.Type != statementType || s.PredicateType != evidence.ManifestType {
		return evidence.Manifest{}, fmt.Errorf("it states a %.80q of type %.80q, want a %q of type %q", s.Type, s.PredicateType, statementType, evidence.ManifestType)
	}
	about, err := subjects(s.Predicate)
	if err != nil {
		return evidence.Manifest{}, err
	}
	if !reflect.DeepEqual(s.Subject, about) {
		return evidence.Manifest{}, errors.New("its subjects are not the items of its manifest")
	}
	return s.Predicate, nil
}

// subjects gives the objects of a manifest, in the order of its items. An
// item of which nothing was stored has no object.
func subjects(m evidence.Manifest) ([]subject, error) {
	out := []subject{}
	seen := map[string]bool{}
	for _, i := range m.Items {
		if i.Status == evidence.Open {
			return nil, fmt.Errorf("item %.200q is still being taken", i.Key)
		}
		if err := agree(i); err != nil {
			return nil, err
		}
		if len(i.Parts) == 0 {
			continue
		}
		if i.Key == "" || seen[i.Key] {
			return nil, fmt.Errorf("item %.200q has no key of its own", i.Key)
		}
		seen[i.Key] = true
		digest := map[string]string{composite: i.SHA256}
		if len(i.Parts) == 1 {
			digest = map[string]string{"sha256": i.Parts[0].SHA256.String()}
		}
		out = append(out, subject{i.Key, digest})
	}
	return out, nil
}

// agree wants an item's size and hash to be those of its parts.
func agree(i evidence.Item) error {
	var size uint64
	for _, p := range i.Parts {
		size += p.Size
	}
	hash := ""
	if len(i.Parts) > 0 {
		hash = evidence.Composite(i.Parts)
	}
	if i.Size != size || i.SHA256 != hash {
		return fmt.Errorf("item %.200q has %d bytes and hash %.100q, its parts have %d and %q", i.Key, i.Size, i.SHA256, size, hash)
	}
	return nil
}
