package emulator

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// maxSkew is how far the clock of a request may be off, as AWS documents it.
const maxSkew = 5 * time.Minute

// credential is what a request's Authorization header says.
type credential struct {
	key, date, region, service string
	signed                     []string // names of signed headers, small letters
}

// Source: IAM user guide, "Create a signed AWS API request".
func parseAuthorization(header string) (credential, bool) {
	rest, ok := strings.CutPrefix(header, "AWS4-HMAC-SHA256 ")
	if !ok {
		return credential{}, false
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if len(fields) != 3 || len(scope) != 5 || scope[4] != "aws4_request" || fields["SignedHeaders"] == "" || fields["Signature"] == "" {
		return credential{}, false
	}
	return credential{key: scope[0], date: scope[1], region: scope[2], service: scope[3],
		signed: strings.Split(fields["SignedHeaders"], ";")}, true
}

// verify signs the request again with the account's key and compares. The
// service of the scope is given also where the request is refused.
func (c *Config) verify(r *http.Request, body []byte, now time.Time) (service string, refusal *Error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return "", refuse("MissingAuthenticationToken", "the request has no Authorization header")
	}
	from, ok := parseAuthorization(header)
	if !ok {
		return "", refuse("IncompleteSignature", "the Authorization header is not a whole AWS4-HMAC-SHA256 one")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	switch {
	case err != nil || from.date != at.Format("20060102"):
		return from.service, refuse("IncompleteSignature", "the date is missing, not readable, or not the scope's")
	case now.Sub(at).Abs() > maxSkew:
		return from.service, refuse("RequestExpired", "the request was signed at %s, it is %s", at.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case from.key != c.AccessKeyID || r.Header.Get("X-Amz-Security-Token") != "":
		return from.service, refuse("InvalidClientTokenId", "the security token included in the request is invalid")
	case from.region != c.Region:
		return from.service, refuse("SignatureDoesNotMatch", "the credential should be scoped to %s, it is to %.100q", c.Region, from.region)
	case !slices.Contains(from.signed, "host") || !slices.Contains(from.signed, "x-amz-date"):
		return from.service, refuse("SignatureDoesNotMatch", "host and x-amz-date must be signed")
	}
	again, err := c.sign(r, body, from, at)
	if err != nil || subtle.ConstantTimeCompare([]byte(again), []byte(header)) != 1 {
		return from.service, refuse("SignatureDoesNotMatch", "the request signature we calculated does not match the signature you provided")
	}
	return from.service, nil
}

// sign gives the Authorization header that the request must have.
func (c *Config) sign(r *http.Request, body []byte, from credential, at time.Time) (string, error) {
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+r.URL.RequestURI(), nil)
	if err != nil {
		return "", err
	}
	if slices.Contains(from.signed, "content-length") {
		again.ContentLength = int64(len(body))
	}
	for name, values := range r.Header {
		if slices.Contains(from.signed, strings.ToLower(name)) {
			again.Header[name] = values
		}
	}
	sum := sha256.Sum256(body)
	keys := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey}
	err = v4.NewSigner().SignHTTP(r.Context(), keys, again, hex.EncodeToString(sum[:]), from.service, c.Region, at)
	return again.Header.Get("Authorization"), err
}
