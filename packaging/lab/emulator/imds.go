package emulator

import (
	"cmp"
	"crypto/x509"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of metadata tokens. Source: EC2 user guide, "Use the Instance
// Metadata Service to access instance metadata".
const (
	maxTokenTTL = 21600 // seconds
	maxTokens   = 10_000
)

// metadata is the instance metadata service, version 2 only, as one instance
// sees it.
type metadata struct {
	log      *slog.Logger
	signer   *identitySigner
	pages    map[string]string
	counters *counters

	mu     sync.Mutex
	tokens map[string]time.Time // under mu; when each ends
}

func newMetadata(cfg *Config, counters *counters, log *slog.Logger) (*metadata, error) {
	signer, err := newIdentitySigner(time.Now())
	if err != nil {
		return nil, err
	}
	m := &metadata{log: log, signer: signer, counters: counters, pages: map[string]string{}, tokens: map[string]time.Time{}}
	if len(cfg.Instances) == 0 {
		return m, nil // every page is missing
	}
	i := cfg.Instances[0]
	document := identityDocument(cfg, i)
	signature, err := signer.signature(document)
	if err != nil {
		return nil, err
	}
	envelope, err := signer.pkcs7(document)
	if err != nil {
		return nil, err
	}
	m.pages = map[string]string{
		"/latest/meta-data/instance-id":                 i.ID,
		"/latest/meta-data/ami-id":                      i.ImageID,
		"/latest/meta-data/instance-type":               cmp.Or(i.Type, "m5.large"),
		"/latest/meta-data/local-ipv4":                  i.PrivateIP,
		"/latest/meta-data/placement/region":            cfg.Region,
		"/latest/meta-data/placement/availability-zone": i.AZ,
		"/latest/meta-data/services/domain":             "amazonaws.com",
		"/latest/meta-data/services/partition":          "aws",
		"/latest/dynamic/instance-identity/document":    string(document),
		"/latest/dynamic/instance-identity/signature":   signature,
		"/latest/dynamic/instance-identity/rsa2048":     envelope,
	}
	m.addChosen(i)
	return m, nil
}

// rolePages lists the role's name; below it are its credentials.
const rolePages = "/latest/meta-data/iam/security-credentials"

// addChosen adds what there is only where somebody chose to have it.
func (m *metadata) addChosen(i Instance) {
	for page, text := range map[string]string{
		"/latest/user-data":               i.UserData,
		rolePages:                         i.Role,
		"/latest/meta-data/tags/instance": strings.Join(slices.Sorted(maps.Keys(i.Tags)), "\n"),
	} {
		if text != "" {
			m.pages[page] = text
		}
	}
	for key, value := range i.Tags {
		m.pages["/latest/meta-data/tags/instance/"+key] = value
	}
}

// IdentityCertificate is the certificate that signs identity documents, as the
// one that AWS publishes for each region.
func (e *Emulator) IdentityCertificate() *x509.Certificate { return e.metadata.signer.certificate }

func (m *metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "EC2ws")
	switch {
	case r.Header.Get("X-Forwarded-For") != "":
		w.WriteHeader(http.StatusForbidden) // so that no proxy gives tokens away
	case r.URL.Path == "/latest/api/token":
		m.giveToken(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case !m.valid(r.Header.Get("X-Aws-Ec2-Metadata-Token")):
		m.log.Debug("metadata refused: no valid token", "path", r.URL.Path)
		w.WriteHeader(http.StatusUnauthorized)
	default:
		m.givePage(w, r)
	}
}

func (m *metadata) giveToken(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	ttl := r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds")
	seconds, err := strconv.Atoi(ttl)
	if err != nil || seconds < 1 || seconds > maxTokenTTL {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	token := newUUID()
	if !m.keep(token, time.Now().Add(time.Duration(seconds)*time.Second)) {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl)
	_, _ = io.WriteString(w, token) // the client may be gone
}

// keep forgets ended tokens and keeps a new one, unless there are too many.
func (m *metadata) keep(token string, end time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for old, end := range m.tokens {
		if !time.Now().Before(end) {
			delete(m.tokens, old)
		}
	}
	if len(m.tokens) >= maxTokens {
		return false
	}
	m.tokens[token] = end
	return true
}

func (m *metadata) valid(token string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	end, ok := m.tokens[token]
	return ok && time.Now().Before(end)
}

// givePage gives a page. A role's credentials are none, and whoever asks for
// them is counted.
func (m *metadata) givePage(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(strings.TrimSuffix(r.URL.Path, "/"), rolePages+"/") {
		m.counters.call("imds.Credentials")
	}
	page, ok := m.pages[strings.TrimSuffix(r.URL.Path, "/")]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, page) // the client may be gone
}
