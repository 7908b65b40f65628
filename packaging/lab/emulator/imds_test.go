package emulator_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/quicklime-ir/quicklime/agent/artifact"
)

func TestMetadataThroughTheSDK(t *testing.T) {
	l := start(t, nil)
	client := imds.NewFromConfig(l.cfg)
	who, err := client.GetInstanceIdentityDocument(t.Context(), &imds.GetInstanceIdentityDocumentInput{})
	if err != nil || who.InstanceID != host || who.AccountID != account || who.Region != region || who.PrivateIP != "10.0.0.10" {
		t.Errorf("%+v, %v", who, err)
	}
	for path, want := range map[string]string{"instance-id": host, "placement/region": region, "placement/availability-zone": region + "b"} {
		out, err := client.GetMetadata(t.Context(), &imds.GetMetadataInput{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(out.Content); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		out.Content.Close()
	}
}

// get sends one request to the metadata service.
func (l *lab) get(t *testing.T, method, path string, header ...string) (int, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, l.IMDSURL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(header); n += 2 {
		q.Header.Set(header[n], header[n+1])
	}
	r, err := l.cfg.HTTPClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

const (
	tokenHeader = "X-aws-ec2-metadata-token"
	ttlHeader   = "X-aws-ec2-metadata-token-ttl-seconds"
)

func TestMetadataTokens(t *testing.T) {
	l := start(t, nil)
	status, token := l.get(t, "PUT", "/latest/api/token", ttlHeader, "1")
	if status != 200 || token == "" {
		t.Fatalf("%d %q", status, token)
	}
	for _, c := range []struct {
		name, method, path string
		header             []string
		want               int
	}{
		{"with the token", "GET", "/latest/meta-data/instance-id", []string{tokenHeader, token}, 200},
		{"without one: version 1 is off", "GET", "/latest/meta-data/instance-id", nil, 401},
		{"with one of nobody", "GET", "/latest/meta-data/instance-id", []string{tokenHeader, "x"}, 401},
		{"the role's name", "GET", "/latest/meta-data/iam/security-credentials/", []string{tokenHeader, token}, 200},
		{"its credentials, which are never there", "GET", "/latest/meta-data/iam/security-credentials/shop-web", []string{tokenHeader, token}, 404},
		{"another method", "POST", "/latest/meta-data/instance-id", []string{tokenHeader, token}, 405},
		{"token by GET", "GET", "/latest/api/token", []string{ttlHeader, "60"}, 405},
		{"token without a life", "PUT", "/latest/api/token", nil, 400},
		{"token that lives too long", "PUT", "/latest/api/token", []string{ttlHeader, "21601"}, 400},
		{"token through a proxy", "PUT", "/latest/api/token", []string{ttlHeader, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
	} {
		if got, _ := l.get(t, c.method, c.path, c.header...); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	time.Sleep(1100 * time.Millisecond)
	if got, _ := l.get(t, "GET", "/latest/meta-data/instance-id", tokenHeader, token); got != 401 {
		t.Errorf("an ended token: %d", got)
	}
}

// The agent reads what the instance is: tags, the role's name, the hash of the
// user data. It asks for no credentials.
func TestMetadataThroughTheAgent(t *testing.T) {
	l := start(t, nil)
	h := &artifact.Host{MetadataURL: l.IMDSURL(), Root: t.TempDir()}
	var out bytes.Buffer
	var record artifact.Record
	for _, table := range h.Live() {
		if table.Name == "instance_metadata" {
			if err := table.Write(t.Context(), &out, &record); err != nil {
				t.Fatal(err)
			}
		}
	}
	var row artifact.InstanceMetadata
	if err := json.Unmarshal(out.Bytes(), &row); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	data := sha256.Sum256([]byte("#cloud-config\n"))
	if row.InstanceID != host || row.Document["accountId"] != account || row.Signature == "" || row.Tags["Name"] != "shop-web-3" ||
		!slices.Equal(row.Role, []artifact.Text{"shop-web"}) || row.UserDataSHA256 != hex.EncodeToString(data[:]) {
		t.Errorf("%s", out.String())
	}
	if n := l.State().Calls["imds.Credentials"]; n > 0 {
		t.Errorf("the role's credentials were asked for %d times", n)
	}
	// The counter sees them, or the line above would say nothing.
	_, token := l.get(t, "PUT", "/latest/api/token", ttlHeader, "60")
	l.get(t, "GET", "/latest/meta-data/iam/security-credentials/shop-web", tokenHeader, token)
	if n := l.State().Calls["imds.Credentials"]; n != 1 {
		t.Errorf("the emulator counts %d requests for credentials, want 1", n)
	}
}

func TestIdentityDocumentIsSigned(t *testing.T) {
	l := start(t, nil)
	_, token := l.get(t, "PUT", "/latest/api/token", ttlHeader, "60")
	page := func(name string) string {
		status, text := l.get(t, "GET", "/latest/dynamic/instance-identity/"+name, tokenHeader, token)
		if status != 200 {
			t.Fatalf("%s: %d", name, status)
		}
		return text
	}
	document := page("document")
	var fields map[string]any
	if err := json.Unmarshal([]byte(document), &fields); err != nil || fields["instanceId"] != host {
		t.Fatalf("%s: %v", document, err)
	}
	signature, err := base64.StdEncoding.DecodeString(page("signature"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.IdentityCertificate().CheckSignature(x509.SHA256WithRSA, []byte(document), signature); err != nil {
		t.Error(err)
	}
	envelope, err := base64.StdEncoding.DecodeString(page("rsa2048"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(document))
	if !bytes.Contains(envelope, []byte(document)) || !bytes.Contains(envelope, sum[:]) {
		t.Error("the envelope holds neither the document nor its digest")
	}
	verifyWithOpenSSL(t, l.IdentityCertificate(), page("rsa2048"), document)
}

// verifyWithOpenSSL does what the EC2 user guide tells to do.
func verifyWithOpenSSL(t *testing.T, certificate *x509.Certificate, envelope, document string) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here")
	}
	dir := t.TempDir()
	pemFile, p7 := filepath.Join(dir, "certificate"), filepath.Join(dir, "rsa2048")
	if err := os.WriteFile(pemFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p7, []byte("-----BEGIN PKCS7-----\n"+envelope+"\n-----END PKCS7-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := exec.CommandContext(t.Context(), openssl, "smime", "-verify", "-binary", "-in", p7, "-inform", "PEM", "-certfile", pemFile, "-noverify", "-nointern")
	var out, says strings.Builder
	run.Stdout, run.Stderr = &out, &says
	if err := run.Run(); err != nil || out.String() != document {
		t.Errorf("%v: %s\n%s", err, says.String(), out.String())
	}
}
