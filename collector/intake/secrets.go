package intake

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.org/x/time/rate"

	"github.com/quicklime-ir/quicklime/collector/gate"
)

// WebhookUser is the user's name where EventBridge's connection uses basic
// authorization.
const WebhookUser = "quicklime"

// Bounds of the secrets. Source: EventBridge API reference, the value of an
// API key and the password of basic authorization: 512 characters, no colon.
const (
	maxSecrets  = 2 // the one in use, and the next
	leastSecret = 20
	maxSecret   = 512
	maxFile     = 4096 // bytes
)

// Secrets are what a sender must know one of. Their hashes are kept alone.
type Secrets [][sha256.Size]byte

// ReadSecrets reads a file with one secret, or with two while one is changed
// for the other, a line each. Nobody but its owner may read the file. An error
// never repeats a secret.
func ReadSecrets(path string) (Secrets, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the webhook's secrets: %w", err)
	}
	defer file.Close()
	about, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read the webhook's secrets: %w", err)
	}
	if mode := about.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("cannot use the webhook's secrets in %s: its mode is %v, and others may use the file; 'chmod 600' it", path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxFile))
	if err != nil {
		return nil, fmt.Errorf("cannot read the webhook's secrets: %w", err)
	}
	secrets, err := parseSecrets(text)
	if err != nil {
		return nil, fmt.Errorf("cannot use the webhook's secrets in %s: %w", path, err)
	}
	return secrets, nil
}

func parseSecrets(text []byte) (Secrets, error) {
	var out Secrets
	for n, line := range bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n")) {
		if len(line) < leastSecret || len(line) > maxSecret {
			return nil, fmt.Errorf("line %d has %d characters, want %d to %d", n+1, len(line), leastSecret, maxSecret)
		}
		if bytes.ContainsFunc(line, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) {
			return nil, fmt.Errorf("line %d holds a space, a colon or what is not ASCII, which EventBridge does not send", n+1)
		}
		out = append(out, sha256.Sum256(line))
	}
	if len(out) > maxSecrets {
		return nil, fmt.Errorf("it has %d lines, want %d at most: the secret in use, and the next", len(out), maxSecrets)
	}
	if len(out) == maxSecrets && out[0] == out[1] {
		return nil, errors.New("both lines are the same")
	}
	return out, nil
}

// allow reports whether a request brings one of the secrets. How long that
// takes says nothing of them: hashes of one length are compared, all of them.
func (s Secrets) allow(r *http.Request) bool {
	said, ok := secretOf(r)
	if !ok {
		return false
	}
	sum, same := sha256.Sum256([]byte(said)), 0
	for _, secret := range s {
		same |= subtle.ConstantTimeCompare(sum[:], secret[:])
	}
	return same == 1
}

// secretOf gives the secret that a request brings in one of the ways of an
// EventBridge connection: an API key named x-api-key; one that is named
// Authorization and whose value is "Bearer" and the secret; or basic
// authorization. Of two headers of one name it takes neither.
func secretOf(r *http.Request) (string, bool) {
	keys, authorization := r.Header.Values("X-Api-Key"), r.Header.Values("Authorization")
	switch {
	case len(keys)+len(authorization) != 1:
		return "", false
	case len(keys) == 1:
		return keys[0], true
	}
	if user, password, ok := r.BasicAuth(); ok {
		return password, user == WebhookUser
	}
	return strings.CutPrefix(authorization[0], "Bearer ")
}

// maxSources bounds the addresses of each of two generations.
const maxSources = 4096

// sources holds a limiter for each address that has sent something lately.
// When one generation is full it becomes the old one, and the one before is
// forgotten.
type sources struct {
	mu       sync.Mutex
	now, old map[netip.Prefix]*rate.Limiter // under mu
}

// of gives the limiter of a remote address, which net/http writes as
// address:port. What is no address shares one.
func (s *sources) of(remote string) *rate.Limiter {
	at, _ := netip.ParseAddrPort(remote)
	from := gate.Prefix(at.Addr())
	s.mu.Lock()
	defer s.mu.Unlock()
	limiter, ok := s.now[from]
	if ok {
		return limiter
	}
	if limiter, ok = s.old[from]; !ok {
		limiter = rate.NewLimiter(sourceRate, sourceRate)
	}
	if s.now == nil || len(s.now) >= maxSources {
		s.now, s.old = map[netip.Prefix]*rate.Limiter{}, s.now
	}
	s.now[from] = limiter
	return limiter
}
