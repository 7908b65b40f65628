package emulator

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// metadata is the instance metadata service, version 2, of the first
// instance. Source: Amazon EC2 User Guide, "Use the Instance Metadata
// Service".
type metadata struct {
	*Emulator
	mu     sync.Mutex
	tokens map[string]time.Time // until when; owned by mu
}

func newMetadata(e *Emulator) *metadata {
	return &metadata{Emulator: e, tokens: map[string]time.Time{}}
}

// ServeHTTP implements http.Handler.
func (m *metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/latest/api/token" {
		m.token(w, r)
		return
	}
	m.mu.Lock()
	until, ok := m.tokens[r.Header.Get("X-aws-ec2-metadata-token")]
	m.mu.Unlock()
	if r.Method != http.MethodGet || !ok || time.Now().After(until) {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	text, err := m.value(r.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if text == "" {
		http.NotFound(w, r)
		return
	}
	fmt.Fprint(w, text)
}

func (m *metadata) token(w http.ResponseWriter, r *http.Request) {
	ttl, err := strconv.Atoi(r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds"))
	if r.Method != http.MethodPut || r.Header.Get("X-Forwarded-For") != "" {
		http.Error(w, "Forbidden", http.StatusForbidden)
		return
	}
	if err != nil || ttl < 1 || ttl > 21600 {
		http.Error(w, "Bad Request", http.StatusBadRequest)
		return
	}
	token := base64.URLEncoding.EncodeToString([]byte(uuid()))
	m.mu.Lock()
	m.tokens[token] = time.Now().Add(time.Duration(ttl) * time.Second)
	m.mu.Unlock()
	w.Header().Set("X-aws-ec2-metadata-token-ttl-seconds", strconv.Itoa(ttl))
	fmt.Fprint(w, token)
}

// value gives what stands at a path, "" where nothing does.
func (m *metadata) value(path string) (string, error) {
	if len(m.cfg.Instances) == 0 {
		return "", nil
	}
	i := m.cfg.Instances[0]
	document, err := json.MarshalIndent(map[string]any{
		"accountId": m.cfg.AccountID, "architecture": "x86_64", "availabilityZone": i.AZ, "imageId": i.ImageID, "instanceId": i.ID,
		"instanceType": "m5.large", "pendingTime": m.signer.since.UTC().Format(time.RFC3339), "privateIp": i.PrivateIP, "region": m.cfg.Region, "version": "2017-09-30",
	}, "", "  ")
	if err != nil {
		return "", err
	}
	switch path {
	case "/latest/dynamic/instance-identity/document":
		return string(document), nil
	case "/latest/dynamic/instance-identity/signature":
		sum := sha256.Sum256(document)
		signature, err := rsa.SignPKCS1v15(rand.Reader, m.signer.key, crypto.SHA256, sum[:])
		return base64.StdEncoding.EncodeToString(signature), err
	case "/latest/dynamic/instance-identity/rsa2048":
		der, err := m.signer.pkcs7(document)
		return base64.StdEncoding.EncodeToString(der), err
	}
	return map[string]string{
		"/latest/meta-data/instance-id": i.ID, "/latest/meta-data/ami-id": i.ImageID, "/latest/meta-data/local-ipv4": i.PrivateIP,
		"/latest/meta-data/instance-type": "m5.large", "/latest/meta-data/placement/region": m.cfg.Region,
		"/latest/meta-data/placement/availability-zone": i.AZ,
	}[path], nil
}

// documentSigner signs identity documents, as the region's key does.
type documentSigner struct {
	key   *rsa.PrivateKey
	cert  *x509.Certificate
	since time.Time
}

func newDocumentSigner() (*documentSigner, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("cannot make key of identity documents: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "Quicklime lab region"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cannot make certificate of identity documents: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return &documentSigner{key, cert, now.Add(-time.Hour)}, err
}

// IdentityCertificate is the one by which identity documents are verified.
func (e *Emulator) IdentityCertificate() *x509.Certificate { return e.signer.cert }

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidSHA256     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// pkcs7 is the document inside its signature. Source: RFC 5652, section 5.
func (s *documentSigner) pkcs7(document []byte) ([]byte, error) {
	type contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	type signerInfo struct {
		Version int
		Issuer  struct {
			Name   asn1.RawValue
			Serial *big.Int
		}
		Digest    pkix.AlgorithmIdentifier
		Algorithm pkix.AlgorithmIdentifier
		Signature []byte
	}
	type signedData struct {
		Version int
		Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		Content contentInfo
		Signers []signerInfo `asn1:"set"`
	}
	sum := sha256.Sum256(document)
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	if err != nil {
		return nil, err
	}
	octets, err := asn1.Marshal(document)
	if err != nil {
		return nil, err
	}
	signer := signerInfo{Version: 1, Digest: pkix.AlgorithmIdentifier{Algorithm: oidSHA256}, Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidRSA}, Signature: signature}
	signer.Issuer.Name, signer.Issuer.Serial = asn1.RawValue{FullBytes: s.cert.RawIssuer}, s.cert.SerialNumber
	wrap := func(der []byte) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: der}
	}
	inner, err := asn1.Marshal(signedData{Version: 1, Digests: []pkix.AlgorithmIdentifier{signer.Digest},
		Content: contentInfo{oidData, wrap(octets)}, Signers: []signerInfo{signer}})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{oidSignedData, wrap(inner)})
}
