package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strings"
	"time"
)

// The instance metadata service. Source: EC2 user guide, "Use the Instance
// Metadata Service to access instance metadata".
const (
	metadataURL   = "http://169.254.169.254"
	metadataWait  = time.Second // for one page
	metadataWhole = 10 * time.Second
	maxPage       = 64 << 10
	maxUserData   = 1 << 20 // EC2 takes 16 KiB
	maxTags       = 128     // EC2 takes 50
)

// InstanceMetadata is the row of the table instance_metadata: what the
// instance metadata service says this host is. No credentials are asked for:
// of its role the name alone.
type InstanceMetadata struct {
	Endpoint     string          `json:"endpoint"`
	InstanceID   Text            `json:"instance_id"`
	Document     map[string]Text `json:"document,omitempty"`      // texts of the instance identity document
	DocumentText Text            `json:"document_text,omitempty"` // the same as it was sent
	Signature    Text            `json:"signature,omitempty"`     // its PKCS #7 signature, RSA-2048, in base64; not verified here
	Pages        map[string]Text `json:"pages"`                   // other pages below /latest/meta-data/ that are there
	Role         []Text          `json:"role,omitempty"`          // names alone
	Tags         map[string]Text `json:"tags,omitempty"`          // where the instance lets itself see them; keys are escaped as Text is
	TagsCut      bool            `json:"tags_cut,omitempty"`
	// The user data itself may hold secrets, and is not in the row.
	UserDataBytes  int64  `json:"user_data_bytes"`
	UserDataSHA256 string `json:"user_data_sha256,omitempty"` // in hex
}

// metadataPages are asked for, beside those with fields of their own.
var metadataPages = []string{"ami-id", "ami-launch-index", "hostname", "instance-life-cycle", "instance-type", "local-ipv4", "mac", "placement/availability-zone-id",
	"placement/region", "profile", "public-hostname", "public-ipv4", "reservation-id", "security-groups", "iam/info"}

// fillMetadata writes the table instance_metadata. A service that does not
// answer is on record: there is none outside of EC2, it may be turned off, and
// a container is further from it than its hop limit.
func fillMetadata(h *Host, s *sheet) error {
	base := h.MetadataURL
	if base == "" && h.Root != "" {
		s.note(metadataURL, NoteUnread, "another root is read, of which this host's service says nothing")
		return nil
	}
	if base == "" {
		base = metadataURL
	}
	ctx, cancel := context.WithTimeout(s.ctx, metadataWhole)
	defer cancel()
	m := newMetadataReader(ctx, s, strings.TrimSuffix(base, "/"))
	if !m.start() {
		return s.ctx.Err()
	}
	row := &InstanceMetadata{Endpoint: m.base, Pages: map[string]Text{}}
	row.InstanceID = clip(m.page("/latest/meta-data/instance-id", maxWord), maxWord)
	row.readDocument(m)
	for _, name := range metadataPages {
		if page := m.page("/latest/meta-data/"+name, maxPage); page != nil {
			row.Pages[name] = Text(page)
		}
	}
	// The list of roles is no credential; what lies below it is, and is never
	// asked for.
	for line := range strings.Lines(string(m.page("/latest/meta-data/iam/security-credentials/", maxPath))) {
		row.Role = append(row.Role, clip(strings.TrimSpace(line), maxWord))
	}
	row.readTags(m)
	if data := m.page("/latest/user-data", maxUserData); data != nil {
		sum := sha256.Sum256(data)
		row.UserDataBytes, row.UserDataSHA256 = int64(len(data)), hex.EncodeToString(sum[:])
	}
	return s.put(row)
}

func (row *InstanceMetadata) readDocument(m *metadataReader) {
	const at = "/latest/dynamic/instance-identity/document"
	data := m.page(at, maxPage)
	if data == nil {
		return
	}
	row.DocumentText = Text(data)
	row.Signature = Text(m.page("/latest/dynamic/instance-identity/rsa2048", maxPage))
	var document map[string]any
	if err := json.Unmarshal(data, &document); err != nil {
		m.s.note(m.base+at, NoteOdd, err.Error())
		return
	}
	row.Document = map[string]Text{}
	for key, value := range document {
		if text, ok := value.(string); ok {
			escaped, _ := Text(key).MarshalText() // never fails
			row.Document[string(escaped)] = Text(text)
		}
	}
}

func (row *InstanceMetadata) readTags(m *metadataReader) {
	const at = "/latest/meta-data/tags/instance"
	for line := range strings.Lines(string(m.page(at, maxPage))) {
		key := strings.TrimRight(line, "\r\n")
		if path.Clean("/"+key) != "/"+key || strings.ContainsAny(key, "?#%") {
			m.s.note(m.base+at, NoteOdd, key)
			continue
		}
		if len(row.Tags) == maxTags {
			row.TagsCut = true
			return
		}
		if row.Tags == nil {
			row.Tags = map[string]Text{}
		}
		escaped, _ := Text(key).MarshalText() // never fails
		row.Tags[string(escaped)] = Text(m.page(at+"/"+key, maxPath))
	}
}

// metadataReader asks for pages with a token, as version 2 of the service wants.
type metadataReader struct {
	ctx    context.Context
	s      *sheet
	base   string
	token  string
	client *http.Client
}

func newMetadataReader(ctx context.Context, s *sheet, base string) *metadataReader {
	client := &http.Client{
		Timeout: metadataWait,
		Transport: &http.Transport{ // no proxy: the host's settings do not choose who answers
			DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: metadataWait}).DialContext, MaxResponseHeaderBytes: maxPage},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return &metadataReader{ctx: ctx, s: s, base: base, client: client}
}

// start gets the token.
func (m *metadataReader) start() bool {
	const at = "/latest/api/token"
	data, err := m.ask(http.MethodPut, at, "X-aws-ec2-metadata-token-ttl-seconds", "60", maxPath)
	if err == nil && len(data) == 0 {
		err = errors.New("cannot use an empty token")
	}
	if err != nil {
		m.s.failed(m.base+at, err)
		return false
	}
	m.token = string(bytes.TrimSpace(data))
	return true
}

var errNoPage = errors.New("404")

// page gives a page, nil where there is none; any other failure is on record.
func (m *metadataReader) page(at string, limit int) []byte {
	data, err := m.ask(http.MethodGet, at, "X-aws-ec2-metadata-token", m.token, limit)
	switch {
	case errors.Is(err, errNoPage):
		return nil
	case err != nil:
		m.s.failed(m.base+at, err)
		return nil
	case len(data) > limit:
		m.s.note(m.base+at, NoteCut, fmt.Sprintf("the first %d bytes are read", limit))
		return data[:limit]
	}
	return data
}

func (m *metadataReader) ask(method, at, header, value string, limit int) ([]byte, error) {
	req, err := http.NewRequestWithContext(m.ctx, method, m.base+at, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot ask metadata service: %w", err)
	}
	req.Header.Set(header, value)
	resp, err := m.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot ask metadata service: %w", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, errNoPage
	default:
		return nil, fmt.Errorf("cannot ask metadata service: it refuses with status %d", resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read metadata: %w", err)
	}
	return data, nil
}
