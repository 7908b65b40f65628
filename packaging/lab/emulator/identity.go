package emulator

import (
	"cmp"
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
	"strings"
	"time"
)

// identityDocument is what an instance shows of itself. Source: EC2 user guide,
// "Instance identity documents".
func identityDocument(cfg *Config, i Instance) []byte {
	launched := i.LaunchTime
	if launched.IsZero() {
		launched = time.Now().Add(-time.Hour)
	}
	raw, err := json.MarshalIndent(map[string]any{
		"accountId": cfg.AccountID, "architecture": cmp.Or(i.Architecture, "x86_64"), "availabilityZone": i.AZ, "billingProducts": nil,
		"devpayProductCodes": nil, "marketplaceProductCodes": nil, "imageId": i.ImageID, "instanceId": i.ID,
		"instanceType": cmp.Or(i.Type, "m5.large"), "kernelId": nil, "pendingTime": launched.UTC().Format("2006-01-02T15:04:05Z"),
		"privateIp": i.PrivateIP, "ramdiskId": nil, "region": cfg.Region, "version": "2017-09-30",
	}, "", "  ")
	if err != nil {
		panic(err) // strings and nils have a JSON form
	}
	return raw
}

// identitySigner signs identity documents with a key that lives as long as the
// emulator.
type identitySigner struct {
	key         *rsa.PrivateKey
	certificate *x509.Certificate
	now         time.Time
}

func newIdentitySigner(now time.Time) (*identitySigner, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("cannot make the identity key: %w", err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(365 * 24 * time.Hour),
		Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"Quicklime lab"}, CommonName: "Quicklime lab instance identity"}}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cannot make the identity certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("cannot read the identity certificate: %w", err)
	}
	return &identitySigner{key: key, certificate: certificate, now: now}, nil
}

func (s *identitySigner) signature(document []byte) (string, error) {
	sum := sha256.Sum256(document)
	raw, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	return lines(raw), err
}

// lines is base64 in lines of 64 characters, as the metadata service has it.
func lines(raw []byte) string {
	text := base64.StdEncoding.EncodeToString(raw)
	var out strings.Builder
	for len(text) > 64 {
		out.WriteString(text[:64] + "\n")
		text = text[64:]
	}
	return out.String() + text
}

// Names of PKCS 7. Source: RFC 2315, section 14; RFC 5652, sections 5 and 11.
var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version int
		Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		Content contentInfo
		Signers []signerInfo `asn1:"set"`
	}
	signerInfo struct {
		Version    int
		Issuer     issuerAndSerial
		Digest     pkix.AlgorithmIdentifier
		Attributes asn1.RawValue // [0] IMPLICIT SET OF Attribute
		Encryption pkix.AlgorithmIdentifier
		Signature  []byte
	}
	issuerAndSerial struct {
		Name   asn1.RawValue
		Serial *big.Int
	}
	signedAttribute struct {
		Type   asn1.ObjectIdentifier
		Values []any `asn1:"set"`
	}
)

// pkcs7 signs the document and holds it, but no certificate: who checks it must
// have that already, as with AWS.
func (s *identitySigner) pkcs7(document []byte) (string, error) {
	attributes, err := s.attributes(document)
	if err != nil {
		return "", fmt.Errorf("cannot write the signed attributes: %w", err)
	}
	sum := sha256.Sum256(attributes)
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("cannot sign the identity document: %w", err)
	}
	implicit := append([]byte{0xa0}, attributes[1:]...) // the SET's tag becomes [0]
	content, err := asn1.Marshal(document)
	if err != nil {
		return "", fmt.Errorf("cannot write the identity document: %w", err)
	}
	digest := pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	inner, err := asn1.Marshal(signedData{Version: 1, Digests: []pkix.AlgorithmIdentifier{digest},
		Content: contentInfo{oidData, explicit(content)},
		Signers: []signerInfo{{Version: 1, Issuer: issuerAndSerial{asn1.RawValue{FullBytes: s.certificate.RawIssuer}, s.certificate.SerialNumber},
			Digest: digest, Attributes: asn1.RawValue{FullBytes: implicit},
			Encryption: pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}, Signature: signature}}})
	if err != nil {
		return "", fmt.Errorf("cannot write the signed data: %w", err)
	}
	outer, err := asn1.Marshal(contentInfo{oidSignedData, explicit(inner)})
	if err != nil {
		return "", fmt.Errorf("cannot write the signed data: %w", err)
	}
	return lines(outer), nil
}

// explicit wraps an element in [0]. encoding/asn1 does not apply a tag of its
// own to a RawValue.
func explicit(element []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: element}
}

func (s *identitySigner) attributes(document []byte) ([]byte, error) {
	sum := sha256.Sum256(document)
	return asn1.MarshalWithParams([]signedAttribute{
		{oidContentType, []any{oidData}},
		{oidSigningTime, []any{s.now.UTC()}},
		{oidMessageDigest, []any{sum[:]}},
	}, "set")
}
