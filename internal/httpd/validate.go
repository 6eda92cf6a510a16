package httpd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	nethttpmiddleware "github.com/oapi-codegen/nethttp-middleware"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
)

const exampleTime = "2030-01-31T15:04:05Z"

// validator checks requests against the contract. The door has authenticated already.
func (d *door) validator(doc *openapi3.T) func(http.Handler) http.Handler {
	return nethttpmiddleware.OapiRequestValidatorWithOptions(doc, &nethttpmiddleware.Options{
		DoNotValidateServers: true,
		Prefix:               api.BasePath,
		Options: openapi3filter.Options{
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
			MultiError:         true,
		},
		ErrorHandlerWithOpts: func(_ context.Context, err error, w http.ResponseWriter, r *http.Request, _ nethttpmiddleware.ErrorHandlerOpts) {
			d.fail(w, r, explain(err))
		},
	})
}

// explain turns what the validator found into one error that names each field and what it should be. A path that names
// something by an id no id can look like is a 404: there is no such thing.
func explain(err error) error {
	var problems []string
	notFound := false
	collect(err, func(re *openapi3filter.RequestError, se *openapi3.SchemaError, cause error) {
		if re != nil && re.Parameter != nil && re.Parameter.In == openapi3.ParameterInPath && se != nil && se.SchemaField == "pattern" {
			notFound = true
			problems = append(problems, fmt.Sprintf("there is no %s %s", strings.TrimSuffix(re.Parameter.Name, "_id"), clip(fmt.Sprint(se.Value))))
			return
		}
		text := field(re, se) + ": " + complaint(se, cause)
		if !slices.Contains(problems, text) {
			problems = append(problems, text)
		}
	})
	if notFound {
		return core.NotFoundf("%s", problems[0])
	}
	const most = 5
	if len(problems) > most {
		problems = append(problems[:most], fmt.Sprintf("and %d more", len(problems)-most))
	}
	if len(problems) == 0 {
		problems = []string{"the request does not fit the API"}
	}
	return core.Invalidf("%s", strings.Join(problems, "; "))
}

// collect walks the validator's nested errors; exactly one of se and cause is set.
func collect(err error, report func(re *openapi3filter.RequestError, se *openapi3.SchemaError, cause error)) {
	var walk func(re *openapi3filter.RequestError, err error)
	walk = func(re *openapi3filter.RequestError, err error) {
		switch e := err.(type) { //nolint:errorlint // the walk goes from layer to layer itself
		case openapi3.MultiError:
			for _, sub := range e {
				walk(re, sub)
			}
		case *openapi3filter.RequestError:
			if e.Err == nil {
				report(e, nil, errors.New(e.Reason))
				return
			}
			walk(e, e.Err)
		case *openapi3.SchemaError:
			report(re, e, nil)
		default:
			report(re, nil, err)
		}
	}
	walk(nil, err)
}

// field names what is wrong: project.settings.quota, endpoints[0].type, or a parameter.
func field(re *openapi3filter.RequestError, se *openapi3.SchemaError) string {
	name := "the request body"
	if re != nil && re.Parameter != nil {
		name = re.Parameter.Name
	}
	if se == nil {
		return name
	}
	var b strings.Builder
	for i, key := range se.JSONPointer() {
		if _, err := strconv.Atoi(key); err == nil {
			b.WriteString("[" + key + "]")
			continue
		}
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(key)
	}
	if b.Len() == 0 {
		return name
	}
	return b.String()
}

// complaint says what was expected.
func complaint(se *openapi3.SchemaError, cause error) string {
	if se == nil {
		switch {
		case errors.Is(cause, openapi3filter.ErrInvalidRequired):
			return "is required"
		case errors.Is(cause, openapi3filter.ErrInvalidEmptyValue):
			return "must not be empty"
		}
		if pe, ok := errors.AsType[*openapi3filter.ParseError](cause); ok {
			if word := parseWord(pe); word != "" {
				return "must be " + word
			}
		}
		return "cannot be read"
	}
	s := se.Schema
	switch se.SchemaField {
	case "required":
		return "is required"
	case "enum":
		allowed := make([]string, 0, len(s.Enum))
		for _, v := range s.Enum {
			allowed = append(allowed, fmt.Sprint(v))
		}
		out := "must be one of " + strings.Join(allowed, ", ")
		if len(allowed) == 1 {
			out = "must be " + allowed[0]
		}
		if v, ok := se.Value.(string); ok {
			out += ", not " + clip(v)
		}
		return out
	case "type":
		if s.Type != nil && len(s.Type.Slice()) > 0 {
			return "must be " + article(s.Type.Slice()[0])
		}
	case "nullable":
		return "must not be null"
	case "minimum":
		return fmt.Sprintf("must be at least %v", *s.Min)
	case "maximum":
		return "must be at most " + strconv.FormatFloat(*s.Max, 'f', -1, 64)
	case "minLength":
		if s.MinLength == 1 {
			return "must not be empty"
		}
		return fmt.Sprintf("must have at least %d characters", s.MinLength)
	case "maxLength":
		return fmt.Sprintf("must have at most %d characters", *s.MaxLength)
	case "maxProperties":
		return fmt.Sprintf("must have at most %d entries", *s.MaxProps)
	case "pattern":
		if s.Pattern == `^[a-z0-9-]{1,60}$` {
			return "must be an id: up to 60 lower-case letters, digits and hyphens"
		}
		if strings.HasPrefix(s.Pattern, "^([01][0-9]") {
			return "must be a time of day as HH:MM"
		}
		return "must match " + s.Pattern
	case "format":
		if s.Format == "date-time" {
			return "must be a time with a zone, like " + exampleTime
		}
		return "must be a valid " + s.Format
	}
	return se.Reason
}

// parseWord finds out which type a parameter should have had.
func parseWord(pe *openapi3filter.ParseError) string {
	text := pe.Error()
	for _, word := range []string{"integer", "number", "boolean"} {
		if strings.Contains(text, word) {
			return article(word)
		}
	}
	return ""
}

// typeWord is the API's word for a Go kind.
func typeWord(kind string) string {
	switch {
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return "whole number"
	case strings.HasPrefix(kind, "float"):
		return "number"
	default:
		return kind
	}
}

func article(typ string) string {
	switch typ {
	case "integer":
		return "a whole number"
	case "boolean":
		return "true or false"
	case "object":
		return "an object"
	case "array":
		return "a list"
	case "string":
		return "a text"
	default:
		return "a " + typ
	}
}
