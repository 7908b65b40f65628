package locker

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/aws/smithy-go"
)

// noUpload marks an error that says that there is no such upload.
func noUpload(err error) error {
	if code(err) == "NoSuchUpload" {
		return fmt.Errorf("%w: %w", ErrNoUpload, err)
	}
	return err
}

// noObject marks an error that says that there is no such object. The answer
// to HEAD has no body, so the status alone has to say it.
func noObject(err error) error {
	switch c := code(err); {
	case c == "NoSuchBucket":
		return err
	case status(err) == http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNoObject, err)
	case status(err) == http.StatusForbidden:
		return fmt.Errorf("%w (S3 also says so of an object that is not there, unless s3:ListBucket is allowed)", err)
	}
	return err
}

// Passing reports whether what failed may succeed when it is done again: another
// write was under way, S3 had a fault, no answer came, or what was done is not
// seen yet (ErrNoObject).
func Passing(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if errors.Is(err, ErrNoObject) {
		return true
	}
	switch s := status(err); s {
	case http.StatusConflict, http.StatusTooManyRequests, http.StatusRequestTimeout, 0:
		return true
	default:
		return s >= 500
	}
}

// code is S3's code of an error, "" where S3 did not answer.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// status is the HTTP status of an error's answer, 0 where none came.
func status(err error) int {
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		return response.HTTPStatusCode()
	}
	return 0
}
