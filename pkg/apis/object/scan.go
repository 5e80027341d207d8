package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

var errTruncated = errors.New("JSON ends early")

// scanMembers calls visit for each `"key":value` of the members of a JSON object,
// given without its braces. Values are found by their brackets and quotes alone:
// what is inside is for the caller to check.
func scanMembers(members []byte, visit func(key string, value []byte) error) error {
	return scanMembersAt(members, func(_ int, key string, value []byte) error { return visit(key, value) })
}

// scanMembersAt is scanMembers that also tells where each member begins.
func scanMembersAt(members []byte, visit func(at int, key string, value []byte) error) error {
	i := skipSpace(members, 0)
	for i < len(members) {
		at := i
		end, err := skipString(members, i)
		if err != nil {
			return err
		}
		key, err := unquote(members[i:end])
		if err != nil {
			return err
		}
		i = skipSpace(members, end)
		if i >= len(members) || members[i] != ':' {
			return fmt.Errorf("no colon after %q", key)
		}
		i = skipSpace(members, i+1)
		end, err = skipValue(members, i)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if err := visit(at, key, members[i:end:end]); err != nil {
			return err
		}
		i = skipSpace(members, end)
		if i == len(members) {
			return nil
		}
		if members[i] != ',' {
			return fmt.Errorf("no comma after %q", key)
		}
		i = skipSpace(members, i+1)
		if i == len(members) {
			return errTruncated
		}
	}
	return nil
}

// scanItems calls visit for each item of a JSON array, given without its brackets.
func scanItems(items []byte, visit func(value []byte) error) error {
	i := skipSpace(items, 0)
	for i < len(items) {
		end, err := skipValue(items, i)
		if err != nil {
			return err
		}
		if err := visit(items[i:end:end]); err != nil {
			return err
		}
		i = skipSpace(items, end)
		if i == len(items) {
			return nil
		}
		if items[i] != ',' {
			return errors.New("no comma after an item")
		}
		if i = skipSpace(items, i+1); i == len(items) {
			return errTruncated
		}
	}
	return nil
}

func unquote(quoted []byte) (s string, err error) {
	err = decodeText(quoted, &s)
	return s, err
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

func skipString(b []byte, i int) (int, error) {
	if i >= len(b) || b[i] != '"' {
		return 0, errors.New("a key must be a string")
	}
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1, nil
		}
	}
	return 0, errTruncated
}

func skipValue(b []byte, i int) (int, error) {
	if i >= len(b) {
		return 0, errTruncated
	}
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		for depth := 0; i < len(b); i++ {
			switch b[i] {
			case '"':
				end, err := skipString(b, i)
				if err != nil {
					return 0, err
				}
				i = end - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1, nil
				}
			}
		}
		return 0, errTruncated
	}
	start := i
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' && b[i] != ' ' && b[i] != '\n' && b[i] != '\t' && b[i] != '\r' {
		i++
	}
	if i == start {
		return 0, errors.New("no value")
	}
	return i, nil
}

// TypeOf reads the apiVersion and kind of an object's JSON, without looking into its
// other members; ok is false when that takes a full reading.
func TypeOf(data []byte) (apiVersion, kind string, ok bool) {
	data = bytes.TrimSpace(data)
	if len(data) < 2 || data[0] != '{' || data[len(data)-1] != '}' {
		return "", "", false
	}
	err := scanMembers(data[1:len(data)-1], func(key string, value []byte) error {
		switch key {
		case "apiVersion":
			return json.Unmarshal(value, &apiVersion)
		case "kind":
			return json.Unmarshal(value, &kind)
		}
		return nil
	})
	return apiVersion, kind, err == nil
}
