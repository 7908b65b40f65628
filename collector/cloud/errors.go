package cloud

import (
	"errors"
	"slices"

	"github.com/aws/smithy-go"
)

// Errors that callers branch on. All are final.
var (
	ErrNoInstance   = errors.New("no such instance")           // it does not exist here, or is terminated
	ErrImageFailed  = errors.New("image failed")               // EC2 gave up on it; the message has EC2's reason
	ErrForeignImage = errors.New("image is not of this case")  // the name is taken by an image of something else
	errUnusable     = errors.New("request is not usable")      // what was asked for breaks a documented limit of EC2
	errNotEmpty     = errors.New("security group has rules")   // although they were revoked
	errMissing      = errors.New("not visible in EC2 so soon") // what was just made; eventual consistency
)

// Final reports whether no retry will mend err: EC2 does not allow or understand
// what was asked, or answers with one of codes, which its asker would wait for
// in vain. Several errors together are final when each is.
// Source: Amazon EC2 API Reference, "Error codes for the Amazon EC2 API".
func Final(err error, codes ...string) bool {
	switch e := err.(type) {
	case nil:
		return false
	case smithy.APIError:
		return slices.Contains(refusals, e.ErrorCode()) || slices.Contains(codes, e.ErrorCode())
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !Final(err, codes...) })
	case interface{ Unwrap() error }:
		return Final(e.Unwrap(), codes...)
	default:
		return err == ErrNoInstance || err == ErrImageFailed || err == ErrForeignImage || err == errUnusable
	}
}

// refusals are the codes that end any call, whoever asks.
var refusals = []string{
	// not allowed
	"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthFailure", "Blocked", "OptInRequired",
	"OperationNotPermitted", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch",
	"IncompleteSignature", "MissingAuthenticationToken",
	// not understood
	"InvalidParameter", "InvalidParameterValue", "InvalidParameterCombination", "MissingParameter", "UnknownParameter",
	"InvalidAction", "InvalidRequest", "ValidationError", "MalformedQueryString", "Unsupported", "UnsupportedOperation",
	"InvalidInstanceID.Malformed", "InvalidAMIID.Malformed", "InvalidAMIName.Malformed", "InvalidVpcID.Malformed",
	"InvalidNetworkInterfaceId.Malformed", "InvalidGroupId.Malformed",
}

// hasCode reports whether EC2 answered with one of codes.
func hasCode(err error, codes ...string) bool {
	var api smithy.APIError
	return errors.As(err, &api) && slices.Contains(codes, api.ErrorCode())
}

// groupUnseen is EC2's answer about a group that it does not show, yet or at all.
func groupUnseen(err error) bool {
	return hasCode(err, "InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound")
}
