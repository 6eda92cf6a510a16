package httpd

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/internal/core"
)

// normalize reads a request's body and gives it back as JSON in which each key stands once and only keys of the contract
// are left: what is validated is then exactly what the handlers decode (encoding/json matches keys without case and merges
// repeated ones). Form-encoded bodies become JSON. Lists in the query may be comma-joined.
func normalize(w http.ResponseWriter, r *http.Request, op *openapi3.Operation) error {
	if err := normalizeQuery(r, op); err != nil {
		return err
	}
	if !storable(r.URL.Path) {
		return core.NotFoundf("the path is not text in UTF-8")
	}
	if op.RequestBody == nil {
		setBody(r, nil)
		return nil
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return core.Errorf(core.KindTooLarge, "", "the request body is larger than %d bytes", MaxBody)
		}
		return core.Invalidf("the request body could not be read to its end")
	}
	raw = bytes.TrimSpace(bytes.TrimPrefix(raw, []byte("\xef\xbb\xbf")))
	if len(raw) == 0 {
		setBody(r, nil)
		return nil
	}
	var schema *openapi3.Schema
	if mt := op.RequestBody.Value.Content.Get("application/json"); mt != nil && mt.Schema != nil {
		schema = mt.Schema.Value
	}
	value, err := decodeBody(r.Header.Get("Content-Type"), raw, schema)
	if err != nil {
		return err
	}
	if value, err = prune(schema, value); err != nil {
		return err
	}
	if raw, err = json.Marshal(value); err != nil {
		return core.Wrap(err, "httpd.normalize", "")
	}
	setBody(r, raw)
	return nil
}

// storable tells whether PostgreSQL takes s as a text: UTF-8 without zero bytes.
func storable(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

func setBody(r *http.Request, raw []byte) {
	r.GetBody = nil
	r.TransferEncoding = nil
	r.ContentLength = int64(len(raw))
	if raw == nil {
		r.Body = http.NoBody
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	r.Header.Set("Content-Type", "application/json")
}

// decodeBody reads JSON, whatever type curl or a careless client gave it, or a form.
func decodeBody(contentType string, raw []byte, schema *openapi3.Schema) (any, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		media = ""
	}
	looksJSON := raw[0] == '{' || raw[0] == '['
	switch {
	case media == "application/json" || strings.HasSuffix(media, "+json") || looksJSON:
		return decodeJSON(raw)
	case media == "application/x-www-form-urlencoded":
		return decodeForm(string(raw), schema)
	case contentType == "":
		return decodeJSON(raw)
	default:
		return nil, core.Invalidf("a body of type %s cannot be read; send application/json", clip(contentType))
	}
}

func decodeJSON(raw []byte) (any, error) {
	if !utf8.Valid(raw) { // the decoder would replace what is wrong
		return nil, core.Invalidf("the request body is not in UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		at := dec.InputOffset()
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			return nil, core.Invalidf("the request body is not valid JSON: %s (byte %d)", e.Error(), e.Offset)
		}
		return nil, core.Invalidf("the request body is not valid JSON: it ends too early (byte %d)", max(at, int64(len(raw))))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, core.Invalidf("the request body goes on after the JSON value (byte %d)", dec.InputOffset())
	}
	return v, nil
}

// prune drops the keys that the schema does not know, and refuses what PostgreSQL cannot store in a text.
func prune(schema *openapi3.Schema, v any) (any, error) {
	switch v := v.(type) {
	case string:
		if !storable(v) {
			return nil, core.Invalidf("a text in the request body is not UTF-8 or holds a zero byte")
		}
	case []any:
		for i := range v {
			item, err := prune(itemSchema(schema), v[i])
			if err != nil {
				return nil, err
			}
			v[i] = item
		}
	case map[string]any:
		for k := range v {
			sub, known := property(schema, k)
			if !known {
				delete(v, k)
				continue
			}
			if !storable(k) {
				return nil, core.Invalidf("a name in the request body is not UTF-8 or holds a zero byte")
			}
			item, err := prune(sub, v[k])
			if err != nil {
				return nil, err
			}
			v[k] = item
		}
	}
	return v, nil
}

// property returns the schema of an object's key. Without a schema every key is known.
func property(schema *openapi3.Schema, key string) (sub *openapi3.Schema, known bool) {
	if schema == nil {
		return nil, true
	}
	if p, ok := schema.Properties[key]; ok {
		return p.Value, true
	}
	if extra := schema.AdditionalProperties.Schema; extra != nil {
		return extra.Value, true
	}
	return nil, len(schema.Properties) == 0
}

func itemSchema(schema *openapi3.Schema) *openapi3.Schema {
	if schema == nil || schema.Items == nil {
		return nil
	}
	return schema.Items.Value
}

// normalizeQuery splits comma-joined lists into repeated parameters and drops empty optional ones, which clients send for
// flags that were not given.
func normalizeQuery(r *http.Request, op *openapi3.Operation) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return core.Invalidf("the query string cannot be read; check its %%-escapes")
	}
	for name, values := range q {
		for _, v := range values {
			if !storable(v) {
				return core.Invalidf("%s: is not UTF-8 or holds a zero byte", clip(name))
			}
		}
	}
	for _, ref := range op.Parameters {
		p := ref.Value
		if p.In != openapi3.ParameterInQuery || !q.Has(p.Name) {
			continue
		}
		values := q[p.Name]
		if p.Schema != nil && p.Schema.Value.Type.Is(openapi3.TypeArray) {
			var out []string
			for _, v := range values {
				for part := range strings.SplitSeq(v, ",") {
					if part = strings.TrimSpace(part); part != "" {
						out = append(out, part)
					}
				}
			}
			values = out
			if p.Explode != nil && !*p.Explode {
				values = []string{strings.Join(out, ",")}
			}
		} else if len(values) > 1 {
			return core.Invalidf("%s: is given %d times", p.Name, len(values))
		} else if values[0] == "" && !p.Required {
			values = nil
		}
		if len(values) == 0 {
			q.Del(p.Name)
			continue
		}
		q[p.Name] = values
	}
	r.URL.RawQuery = q.Encode()
	return nil
}
