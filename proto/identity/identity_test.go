package identity

import (
	"crypto/x509"
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestParseAgentID(t *testing.T) {
	good := AgentID{"quicklime.example", "111122223333", "eu-central-1", "i-0123456789abcdef0"}
	tests := []struct {
		name, uri string
		want      AgentID
	}{
		{"an instance", "spiffe://quicklime.example/ec2/111122223333/eu-central-1/i-0123456789abcdef0", good},
		{"a short instance id", "spiffe://q/ec2/111122223333/us-gov-west-1/i-01234567", AgentID{"q", "111122223333", "us-gov-west-1", "i-01234567"}},
		{"another scheme", "https://quicklime.example/ec2/111122223333/eu-central-1/i-0123456789abcdef0", AgentID{}},
		{"a path that climbs", "spiffe://q/ec2/111122223333/eu-central-1/../i-01234567", AgentID{}},
		{"a second path", "spiffe://q/ec2/111122223333/eu-central-1/i-01234567/x", AgentID{}},
		{"a query", "spiffe://q/ec2/111122223333/eu-central-1/i-01234567?x=1", AgentID{}},
		{"a user", "spiffe://root@q/ec2/111122223333/eu-central-1/i-01234567", AgentID{}},
		{"an account of letters", "spiffe://q/ec2/11112222333x/eu-central-1/i-01234567", AgentID{}},
		{"an instance of nine digits", "spiffe://q/ec2/111122223333/eu-central-1/i-012345678", AgentID{}},
		{"no trust domain", "spiffe:///ec2/111122223333/eu-central-1/i-01234567", AgentID{}},
		{"too long", "spiffe://" + strings.Repeat("a", 3000), AgentID{}},
		{"nothing", "", AgentID{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseAgentID(tt.uri)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if (tt.want == AgentID{}) != errors.Is(err, ErrUnknown) {
				t.Errorf("error %v", err)
			}
			if err == nil && got.String() != tt.uri {
				t.Errorf("String gives %q, want %q", got, tt.uri)
			}
		})
	}
}

func TestFromCertificateWantsOneName(t *testing.T) {
	id, _ := url.Parse("spiffe://q/ec2/111122223333/eu-central-1/i-01234567")
	for n, ok := range []bool{false, true, false} {
		cert := &x509.Certificate{}
		for range n {
			cert.URIs = append(cert.URIs, id)
		}
		if _, err := FromCertificate(cert); (err == nil) != ok {
			t.Errorf("%d names: error %v, want success %v", n, err, ok)
		}
	}
}

func FuzzParseAgentID(f *testing.F) {
	f.Add("spiffe://q/ec2/111122223333/eu-central-1/i-01234567")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := ParseAgentID(uri)
		if err != nil {
			return
		}
		again, err := ParseAgentID(id.String())
		if err != nil || again != id {
			t.Fatalf("%q gives %+v, and its string %+v, %v", uri, id, again, err)
		}
	})
}
