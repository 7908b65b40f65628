package emulator

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// maxSkew is how far a request's clock may be off.
const maxSkew = 5 * time.Minute

// verifySignature signs the request anew and compares. It gives the service
// of the credential scope.
func verifySignature(r *http.Request, body []byte, cfg Config) (service string, err error) {
	fields := map[string]string{}
	header := r.Header.Get("Authorization")
	algorithm, rest, _ := strings.Cut(header, " ")
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if algorithm != "AWS4-HMAC-SHA256" || len(scope) != 5 || scope[4] != "aws4_request" {
		return "", errors.New("the request has no AWS4-HMAC-SHA256 authorization")
	}
	service = scope[3]
	if scope[0] != cfg.AccessKeyID || scope[2] != cfg.Region {
		return service, errors.New("the access key or the region is not this account's")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > maxSkew {
		return service, errors.New("the request's date is not within five minutes of now")
	}
	signed := strings.Split(fields["SignedHeaders"], ";")
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+r.URL.RequestURI(), nil)
	if err != nil {
		return service, err
	}
	again.ContentLength = r.ContentLength
	for name, values := range r.Header {
		if slices.Contains(signed, strings.ToLower(name)) {
			again.Header[name] = values
		}
	}
	sum := sha256.Sum256(body)
	err = v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: cfg.AccessKeyID, SecretAccessKey: cfg.SecretAccessKey},
		again, hex.EncodeToString(sum[:]), service, cfg.Region, at)
	if err != nil {
		return service, err
	}
	if subtle.ConstantTimeCompare([]byte(again.Header.Get("Authorization")), []byte(header)) != 1 {
		return service, errors.New("the request signature does not match")
	}
	return service, nil
}
