package emulator

import "net/http"

const (
	stsVersion = "2011-06-15"
	stsSpace   = "https://sts.amazonaws.com/doc/2011-06-15/"
)

type stsService struct{ *Emulator }

func (stsService) action(_ *http.Request, body []byte) string { return queryAction(body) }

func (s stsService) do(_ *http.Request, action string, body []byte) (any, *Error) {
	p, err := parseParams(string(body))
	if err != nil {
		return nil, err
	}
	p.text("Action")
	if version := p.text("Version"); action != "GetCallerIdentity" || version != stsVersion {
		return nil, refuse("InvalidAction", "could not find operation %.100q for version %.20q", action, version)
	}
	if err := p.finish(); err != nil {
		return nil, err
	}
	type result struct{ Arn, UserId, Account string }
	return struct {
		Result    result `xml:"GetCallerIdentityResult"`
		RequestID string `xml:"ResponseMetadata>RequestId"`
	}{result{"arn:aws:iam::" + s.cfg.AccountID + ":user/quicklime-lab", s.cfg.AccessKeyID, s.cfg.AccountID}, newUUID()}, nil
}

func (stsService) throttled() *Error { return refuse("Throttling", "rate exceeded") }

func (stsService) unavailable() *Error {
	return refuseWith(http.StatusServiceUnavailable, "ServiceUnavailable", "the service is unavailable; please try again shortly")
}

func (stsService) write(w http.ResponseWriter, action string, answer any, err *Error) {
	if err == nil {
		writeXML(w, http.StatusOK, action+"Response", stsSpace, answer)
		return
	}
	type problem struct{ Type, Code, Message string }
	writeXML(w, err.httpStatus(), "ErrorResponse", stsSpace, struct {
		Error     problem
		RequestId string
	}{problem{"Sender", err.Code, err.Message}, newUUID()})
}
