// Package custody makes what the collector says about a case provable: the
// journal of events as a chain of hashes, and the manifest under a
// signature.
//
// Evidence is only as good as the account of who held it and what was done.
// With the public key alone, anyone can later find that an entry was
// changed, left out or moved, or that the manifest is not the one that was
// signed. What a chain cannot show by itself is that its end was cut off;
// the signed manifest names the entry that it saw last.
//
// The agent never signs anything here: an instance that was broken into
// vouches for nothing.
package custody

import (
	"crypto/sha256"
	"errors"

	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// ErrBroken is the kind of every error that says that a chain or an envelope
// is not what was written.
var ErrBroken = errors.New("chain of custody is broken")

// Hash is the SHA-256 of some bytes.
func Hash(b []byte) evidence.Digest { return sha256.Sum256(b) }
